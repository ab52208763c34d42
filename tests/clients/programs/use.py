"""The Python clients against a node: `python use.py URL`. It ends with 0 when all was as it should be."""

import sys

import meda_client
import twinshare_client


def with_twinshare(url: str) -> None:
    with twinshare_client.ApiClient(twinshare_client.Configuration(host=url)) as client:
        vms = twinshare_client.VmApi(client)
        spec = twinshare_client.VmSpec(name="py", image="disk", cpu_cores=1, memory=64, disk_size=1)
        made = vms.create_vm(spec, idempotency_key="py")
        assert (made.name, made.vnc_port, made.created_at.tzinfo is None) == ("py", None, False), made
        assert vms.start_vm("py").status is twinshare_client.VmStatus.VM_STATUS_RUNNING
        assert [vm.name for vm in vms.list_vms().vms] == ["py"]
        assert refusal(vms) == "vm_not_found"
        vms.delete_vm("py", delete_vm_request=twinshare_client.DeleteVmRequest(force=True))
        assert twinshare_client.OperationsApi(client).list_operations().operations


def refusal(vms: twinshare_client.VmApi) -> str:
    """The code of the error for a VM that is not there."""
    try:
        return f"shown: {vms.get_vm('nope')}"
    except twinshare_client.exceptions.NotFoundException as error:
        return error.data.code


def with_meda(url: str) -> None:
    with meda_client.ApiClient(meda_client.Configuration(host=url)) as client:
        vms, images = meda_client.VMsApi(client), meda_client.ImagesApi(client)
        run = meda_client.ImageRun(image="disk", name="py-meda", memory="64M", cpus=1, disk="1G")
        assert images.run_image(run).vm.devices == []
        vms.stop_vm("py-meda", stop_vm_request=meda_client.StopVmRequest(force=True))
        place = {"registry": "ghcr.io", "org": "myorg"}
        images.create_image(meda_client.ImageCreate(name="my-image", tag="v1.0", from_vm="py-meda", **place))
        assert "myorg/my-image" in [image.name for image in images.list_images().images]
        images.remove_image("my-image")
        vms.delete_vm("py-meda")


with_twinshare(sys.argv[1])
with_meda(sys.argv[1])
