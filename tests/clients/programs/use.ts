// The TypeScript clients against a node: `node built/use.js URL`. It ends with 0 when all was as it should be.
import assert from "node:assert/strict";
import createClient from "openapi-fetch";

import * as meda from "./meda-fetch";
import * as twinshare from "./twinshare-fetch";
import type { paths as MedaPaths } from "./meda-types";
import type { paths } from "./twinshare-types";

const url = process.argv[2];

async function withTypescriptFetch(): Promise<void> {
  const vms = new twinshare.VmApi(new twinshare.Configuration({ basePath: url }));
  const spec = { name: "ts", image: "disk", cpuCores: 1, memory: 64, diskSize: 1 };
  const made = await vms.createVm({ vmSpec: spec, idempotencyKey: "ts" });
  assert.ok(made.createdAt instanceof Date);
  assert.equal(made.vncPort, null);
  const started = await vms.startVm({ vm: "ts" });
  assert.equal(started.status, "running");
  assert.ok((await vms.listVms()).vms.some((vm) => vm.name === "ts"));
  const refused = await vms.getVm({ vm: "nope" }).catch((error) => error);
  assert.ok(refused instanceof twinshare.ResponseError);
  assert.equal(refused.response.status, 404);
  assert.equal((await refused.response.json()).code, "vm_not_found");
  await vms.deleteVm({ vm: "ts", deleteVmRequest: { force: true } });
}

async function withTypescriptFetchOfMeda(): Promise<void> {
  const configuration = new meda.Configuration({ basePath: url });
  const vms = new meda.VMsApi(configuration);
  const images = new meda.ImagesApi(configuration);
  const run = { image: "disk", name: "ts-meda", memory: "64M", cpus: 1, disk: "1G" };
  const done = await images.runImage({ imageRun: run });
  assert.deepEqual(done.vm?.devices, []);
  assert.equal((await vms.stopVm({ name: "ts-meda", stopVmRequest: { force: true } })).vm?.state, "stopped");
  await images.createImage({ imageCreate: { name: "ts-image", tag: "v1", fromVm: "ts-meda", registry: "a.example" } });
  assert.ok((await images.listImages()).images.some((image) => image.name === "ts-image"));
  await images.removeImage({ image: "ts-image" });
  await vms.deleteVm({ name: "ts-meda" });
}

async function withOpenapiTypescript(): Promise<void> {
  const client = createClient<paths>({ baseUrl: url });
  const body = { name: "fetch", image: "disk", cpu_cores: 1, memory: 64, disk_size: 1 } as const;
  const made = await client.POST("/api/vm", { body: body as never });
  assert.equal(made.response.status, 200);
  const shown = await client.GET("/api/vm/{vm}", { params: { path: { vm: "fetch" } } });
  assert.equal(shown.data?.name, "fetch");
  const refused = await client.GET("/api/vm/{vm}", { params: { path: { vm: "nope" } } });
  assert.equal(refused.error?.code, "vm_not_found");
  const theirs = createClient<MedaPaths>({ baseUrl: url });
  const listed = await theirs.GET("/api/v1/vms");
  assert.deepEqual(listed.data?.vms.find((vm) => vm.name === "fetch")?.devices, []);
  await client.DELETE("/api/vm/{vm}", { params: { path: { vm: "fetch" } } });
}

async function main(): Promise<void> {
  await withTypescriptFetch();
  await withTypescriptFetchOfMeda();
  await withOpenapiTypescript();
}

void main();
