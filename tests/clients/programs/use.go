// The Go clients against a node: `./use URL`. It ends with 0 when all was as it should be.
package main

import (
	"context"
	"fmt"
	"os"

	meda "clients/medagen"
	medaoapi "clients/medaoapi"
	twinshare "clients/twinsharegen"
	oapi "clients/twinshareoapi"
)

func must(err error, what string) {
	if err != nil {
		fmt.Fprintln(os.Stderr, what, err)
		os.Exit(1)
	}
}

func hold(truth bool, what string, seen any) {
	if !truth {
		must(fmt.Errorf("%+v", seen), what)
	}
}

func withGenerated(ctx context.Context, url string) {
	configuration := twinshare.NewConfiguration()
	configuration.Servers = twinshare.ServerConfigurations{{URL: url}}
	client := twinshare.NewAPIClient(configuration)
	spec := twinshare.NewVmSpec("go", "disk")
	spec.SetCpuCores(1)
	spec.SetMemory(64)
	spec.SetDiskSize(1)
	made, _, err := client.VmAPI.CreateVm(ctx).VmSpec(*spec).IdempotencyKey("go").Execute()
	must(err, "create")
	hold(made.Name == "go" && made.CreatedAt.Year() > 2000 && !made.VncPort.IsSet() || made.VncPort.Get() == nil, "made", made)
	started, _, err := client.VmAPI.StartVm(ctx, "go").Execute()
	must(err, "start")
	hold(started.Status == twinshare.VM_STATUS_RUNNING, "status", started.Status)
	_, answer, err := client.VmAPI.GetVm(ctx, "nope").Execute()
	hold(err != nil && answer.StatusCode == 404, "a VM that is not there", answer)
	_, _, err = client.VmAPI.DeleteVm(ctx, "go").DeleteVmRequest(twinshare.DeleteVmRequest{Force: twinshare.PtrBool(true)}).Execute()
	must(err, "delete")
}

func withGeneratedOfMeda(ctx context.Context, url string) {
	configuration := meda.NewConfiguration()
	configuration.Servers = meda.ServerConfigurations{{URL: url}}
	client := meda.NewAPIClient(configuration)
	run := meda.NewImageRun("disk")
	run.SetName("go-meda")
	run.SetMemory("64M")
	run.SetCpus(1)
	run.SetDisk("1G")
	run.SetNoStart(true)
	done, _, err := client.ImagesAPI.RunImage(ctx).ImageRun(*run).Execute()
	must(err, "run")
	vm := done.GetVm()
	hold(len(vm.Devices) == 0 && vm.State == "stopped", "made", vm)
	_, _, err = client.VMsAPI.StartVm(ctx, "go-meda").Execute()
	must(err, "start")
	_, _, err = client.VMsAPI.DeleteVm(ctx, "go-meda").Execute()
	must(err, "delete")
}

func withOapiCodegen(ctx context.Context, url string) {
	client, err := oapi.NewClientWithResponses(url)
	must(err, "client")
	one, small := int64(1), int64(64)
	body := oapi.VmSpec{Name: "oapi", Image: "disk", CpuCores: &one, Memory: &small, DiskSize: &one}
	made, err := client.CreateVmWithResponse(ctx, nil, body)
	must(err, "create")
	hold(made.JSON200 != nil && made.JSON200.CreatedAt.Year() > 2000, "made", string(made.Body))
	refused, err := client.GetVmWithResponse(ctx, "nope")
	must(err, "show")
	hold(refused.JSON4XX != nil && refused.JSON4XX.Code == "vm_not_found", "refused", string(refused.Body))
	theirs, err := medaoapi.NewClientWithResponses(url)
	must(err, "client of Meda")
	listed, err := theirs.ListVmsWithResponse(ctx)
	must(err, "list")
	hold(listed.JSON200 != nil && listed.JSON200.Count >= 1, "listed", string(listed.Body))
	gone, err := client.DeleteVmWithResponse(ctx, "oapi", nil, oapi.DeleteVmJSONRequestBody{})
	must(err, "delete")
	hold(gone.JSON200 != nil && gone.JSON200.Success != nil && *gone.JSON200.Success, "gone", string(gone.Body))
}

func main() {
	ctx, url := context.Background(), os.Args[1]
	withGenerated(ctx, url)
	withGeneratedOfMeda(ctx, url)
	withOapiCodegen(ctx, url)
}
