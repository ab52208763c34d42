// The dialog for a new VM: image, size, node; everything else has a good default.
import { call, list } from "./api.js";
import { natural, size } from "./format.js";
import { html, useEffect, useState } from "./html.js";
import { Dialog, Field, Form, report } from "./parts.js";
import { peerOf, run, set, state } from "./store.js";
import { text } from "./text.js";
import { PERIODS, forwardsFrom, labelsFrom } from "./vm_fields.js";

const t = text.create;
const AUTO = "*";
const TINY = "tiny";
const MAC = "([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}";
const NAME = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;

/** The first of `vm-1`, `vm-2`… that no VM of the fleet has. */
function freeName() {
  const taken = new Set(state.vms.map((vm) => vm.name));
  for (let number = 1; ; number += 1) if (!taken.has(`vm-${number}`)) return `vm-${number}`;
}

/** The request's body from the form. @param {FormData} form */
function specFrom(form) {
  const said = (/** @type {string} */ key) => String(form.get(key) ?? "").trim();
  const [memory, disk] = [size(said("memory"), "M"), size(said("disk_size"), "G")];
  if (!NAME.test(said("name"))) throw new Error(t.wrongName);
  if (Number.isNaN(memory) || Number.isNaN(disk)) throw new Error(t.wrongSize);
  const keys = said("keys").split("\n").map((line) => line.trim()).filter(Boolean);
  /** @type {Record<string, unknown>} */
  const cloud = {};
  if (said("user_data")) cloud.user_data = `${form.get("user_data")}`.replaceAll("\r\n", "\n");
  if (keys.length) cloud.ssh_authorized_keys = keys;
  if (said("hostname")) cloud.hostname = said("hostname");
  const [labels, forwards] = [labelsFrom(said("labels")), forwardsFrom(said("forwards"))];
  return {
    name: said("name"), image: said("image"), cpu_cores: Number(said("cpu_cores")), memory, disk_size: disk,
    network: said("network") || "default", start: form.has("start"),
    ...(said("ttl") ? { ttl: Number(said("ttl")) } : {}),
    ...(said("firmware") ? { firmware: said("firmware") } : {}), ...(said("mac") ? { mac: said("mac").toLowerCase() } : {}),
    ...(forwards.length ? { forwards } : {}), ...(form.has("autostart") ? { autostart: true } : {}),
    ...(Object.keys(labels).length ? { labels } : {}), ...(Object.keys(cloud).length ? { cloud_init: cloud } : {}),
  };
}

/** The node with the most free memory that has enough of everything. @param {{memory: number, cpu_cores: number, disk_size: number}} spec */
async function roomiest(spec) {
  const peers = [null, ...state.peers.filter((peer) => peer.status === "online").map((peer) => peer.id)];
  const found = await Promise.all(peers.map(async (peer) => ({ peer, free: (await call("capacity", {}, peer).catch(() => null))?.available })));
  const able = found.filter(({ free }) => free && free.memory >= spec.memory && free.disk >= spec.disk_size && free.cpu >= spec.cpu_cores);
  able.sort((a, b) => b.free.memory - a.free.memory);
  if (!able.length) throw new Error(t.noNode);
  return able[0].peer;
}

/** On a first run `tiny` is built on the spot. @param {any} spec @param {string | null} peer @param {() => void} accepted */
async function create(spec, peer, accepted) {
  if (spec.image === TINY || spec.image === `${TINY}:latest`) {
    const images = await list("list_images", "images", {}, peer);
    if (!images.some((image) => image.name === TINY)) await run("build_tiny", {}, peer, accepted);
  }
  if (peer === null) return void (await run("create_vm", spec, peer, accepted));
  // Ports of the asked node, as those that are added later: those of the peer's own would be of use on its machine alone.
  const { forwards = [], ...rest } = spec;
  await run("create_vm", rest, peer, accepted);
  for (const forward of forwards) await run("add_forward", { vm: spec.name, ...forward }, peer);
}

/** @param {string} node */
function useImages(node) {
  const [found, setFound] = useState({ here: /** @type {string[]} */ ([]), catalogue: /** @type {any[]} */ ([]) });
  const peer = node === AUTO ? null : peerOf(node);
  useEffect(() => {
    const here = list("list_images", "images", {}, peer).then((images) =>
      [...new Set(images.filter((image) => image.name && !image.damaged).map((image) => `${image.name}:${image.tag}`))].sort(natural));
    const catalogue = list("list_catalogue", "entries", {}, peer);
    void Promise.all([here.catch(() => []), catalogue.catch(() => [])]).then(([one, other]) => setFound({ here: one, catalogue: other }));
  }, [node]);
  return found;
}

/** Suggested sizes: a tiny guest needs little. @param {string} image */
const isTiny = (image) => image === TINY || image.startsWith(`${TINY}:`);

export function view() {
  const begun = state.creating ?? {};
  const [node, setNode] = useState(begun.node ?? state.health?.name ?? "");
  const [image, setImage] = useState(begun.image ?? TINY);
  const [name] = useState(freeName);
  const { here, catalogue } = useImages(node);
  const close = () => set({ creating: null });
  const online = state.peers.filter((peer) => peer.status === "online");
  /** @param {FormData} form */
  const submit = async (form) => {
    const spec = specFrom(form);
    const peer = node === AUTO ? await roomiest(spec) : peerOf(node);
    // What is refused stays to be corrected; what fails later is a note.
    let open = true;
    await new Promise((resolve, reject) => {
      const accepted = () => {
        if (open) close();
        open = false;
        resolve(null);
      };
      create(spec, peer, accepted).catch((error) => (open ? reject(error) : report(error)));
    });
  };
  const tiny = isTiny(image);
  return html`
    <${Dialog} title=${t.title} onClose=${close}>
      <${Form} id="create" operation="create_vm" label=${t.create} submit=${submit} cancel=${close}>
        <${Field} label=${t.name} hint=${t.nameHint}><input name="name" required maxlength="63" defaultValue=${name} autocomplete="off" autofocus spellcheck="false" /><//>
        <${Field} label=${t.image} hint=${tiny && !here.some(isTiny) ? t.tiny : ""}>
          <input name="image" required maxlength="512" list="images" value=${image} autocomplete="off" spellcheck="false" onInput=${(event) => setImage(event.target.value)} /><//>
        <datalist id="images">${here.map((one) => html`<option key=${one} value=${one}></option>`)}
          ${!here.some(isTiny) && html`<option value=${TINY}>${t.tiny}</option>`}
          ${catalogue.map((one) => html`<option key=${one.name} value=${one.name}>${one.about}</option>`)}</datalist>
        ${online.length > 0 && html`<${Field} label=${t.node}><select name="node" value=${node} onChange=${(event) => setNode(event.target.value)}>
          <option value=${state.health.name}>${state.health.name} (${t.here})</option>
          ${online.map((peer) => html`<option key=${peer.id} value=${peer.name}>${peer.name}</option>`)}
          <option value=${AUTO}>${t.auto}</option></select><//>`}
        <div class="row">
          <${Field} label=${t.cpu}><input name="cpu_cores" type="number" min="1" max="1024" defaultValue=${tiny ? 1 : 2} key="cpu ${tiny}" /><//>
          <${Field} label=${t.memory} hint=${t.memoryHint}><input name="memory" required defaultValue=${tiny ? "128M" : "2G"} key="memory ${tiny}" /><//>
          <${Field} label=${t.disk} hint=${t.diskHint}><input name="disk_size" required defaultValue=${tiny ? "1G" : "20G"} key="disk ${tiny}" /><//>
        </div>
        <label class="check"><input name="start" type="checkbox" defaultChecked=${true} /> ${t.start}</label>
        <details><summary>${t.more}</summary><div class="dialog">
          <${Field} label=${t.keys} hint=${t.keysHint}><textarea name="keys" rows="2" spellcheck="false"></textarea><//>
          <${Field} label=${t.user} hint=${t.userHint}><textarea name="user_data" rows="4" spellcheck="false"></textarea><//>
          <div class="row"><${Field} label=${t.hostname}><input name="hostname" maxlength="253" /><//>
            <${Field} label=${t.network}><input name="network" maxlength="64" placeholder="default" list="networks" /><//></div>
          <datalist id="networks"><option value="default"></option><option value="isolated"></option></datalist>
          <div class="row"><${Field} label=${t.mac} hint=${t.macHint}><input name="mac" pattern=${MAC} maxlength="17" spellcheck="false" /><//>
            <${Field} label=${t.firmware}><select name="firmware"><option value="">${t.firmwareAny}</option><option value="bios">BIOS</option><option value="uefi">UEFI</option></select><//></div>
          <${Field} label=${t.forwards} hint=${t.forwardsHint}><textarea name="forwards" rows="2" spellcheck="false"></textarea><//>
          <${Field} label=${t.ttl}><select name="ttl">${PERIODS.map(([seconds, label]) => html`<option key=${label} value=${seconds}>${label}</option>`)}</select><//>
          <${Field} label=${t.labels} hint=${t.labelsHint}><textarea name="labels" rows="2" spellcheck="false"></textarea><//>
          <label class="check"><input name="autostart" type="checkbox" /> ${t.autostart}</label>
        </div></details>
      <//>
    <//>`;
}
