// The images of a node: what is there, who stands on it, and the ways in and out.
import { call, list, upload } from "./api.js";
import { ago, bytes } from "./format.js";
import { html, useLoaded, useState } from "./html.js";
import { Icon } from "./icons.js";
import { Prune, Pull, Push } from "./image_dialogs.js";
import { Action, Drop, Empty, Failure, Loading, notifyDone } from "./parts.js";
import { may, peerOf, set, state } from "./store.js";
import { text } from "./text.js";

const t = text.images;

/** @param {any} image */
const refOf = (image) => (image.name ? `${image.name}:${image.tag}` : image.digest);

/** A name for the image in a file: `Debian 12.qcow2` is `debian-12`. @param {string} file */
const nameFrom = (file) => file.toLowerCase().replace(/\.(qcow2|img|raw|iso)$/, "").replace(/[^a-z0-9._-]+/g, "-").replace(/^[^a-z0-9]+|[^a-z0-9]+$/g, "") || "image";

/** Only the asked node takes uploads. @param {{then: () => unknown}} properties */
function Import({ then }) {
  /** @param {File} file @param {(share: number) => void} progress @param {AbortSignal} signal */
  const send = async (file, progress, signal) => {
    const image = await upload("import_image", { name: nameFrom(file.name) }, null, file, progress, signal);
    notifyDone(`${image.name}:${image.tag}`);
    await then();
  };
  return html`<${Drop} operation="import_image" label=${t.import} hint=${t.importHint} send=${send} />`;
}

/** @param {{image: any, peer: string | null, node: string, push: (image: any) => void, then: () => unknown}} properties */
function Row({ image, peer, node, push, then }) {
  const ref = refOf(image);
  return html`
    <tr><th scope="row"><b class="mono">${image.name ? ref : image.digest.slice(0, 24)}</b>${image.damaged && html` <span class="tag bad">${t.damaged}</span>`}<small>${image.source}</small></th>
      <td>${bytes(image.size)}</td><td class="wide">${bytes(image.allocated)}</td>
      <td class="wide">${image.used_by.length ? image.used_by.join(", ") : html`<span class="quiet">${t.unused}</span>`}</td><td class="wider">${ago(image.created_at)}</td>
      <td class="does">
        ${may("operator") && !image.damaged && image.name && html`
          <button type="button" class="plain compact" data-operation="create_vm" aria-label="${t.run}: ${ref}" title=${t.run} onClick=${() => set({ creating: { image: ref, node } })}><${Icon} name="plus" /></button>
          <button type="button" class="plain compact" data-operation="push_image" aria-label="${t.push}: ${ref}" title=${t.push} onClick=${() => push(image)}><${Icon} name="upload" /></button>`}
        <${Action} operation="remove_image" label="${t.delete}: ${ref}" icon="trash" compact=${true} kind="plain danger" params=${{ image: ref }} peer=${peer} then=${then}
          question=${{ title: t.deleteTitle(ref), body: t.deleteBody, yes: t.delete, danger: true }} /></td></tr>`;
}

/** @param {{peer: string | null, then: () => unknown}} properties */
function Catalogue({ peer, then }) {
  const [rows, error] = useLoaded(() => list("list_catalogue", "entries", {}, peer), [peer]);
  if (error) return html`<${Failure} error=${error} />`;
  if (!rows) return html`<${Loading} />`;
  return html`
    <div class="card"><h2>${t.catalogue}</h2><div class="scroll" tabindex="0" role="region" aria-label=${t.catalogue}><table><tbody>${rows.map((one) => html`
      <tr key=${one.name}><th scope="row"><b>${one.name}</b><small>${t.user(one.user)}</small></th><td class="wide">${one.about}</td>
        <td class="does"><${Action} operation="pull_image" label="${t.pull} ${one.name}" icon="download" params=${{ image: one.name }} peer=${peer} then=${then} compact=${true} kind="plain" /></td></tr>`)}</tbody></table></div></div>`;
}

function Tools({ peer, again, open }) {
  return html`
    <${Action} operation="build_tiny" label=${t.build} icon="plus" peer=${peer} then=${again} />
    <${Action} operation="fsck_images" label=${t.check} icon="check" peer=${peer} then=${(/** @type {any} */ found) => notifyDone([t.found(found.findings.length), ...found.findings.map((/** @type {any} */ one) => one.message)].join(" "))} />
    ${may("operator") && html`
      <button type="button" data-operation="prune_images" onClick=${() => open("prune")}><${Icon} name="trash" /><span>${t.prune}</span></button>
      <button type="button" class="primary" data-operation="pull_image" onClick=${() => open("pull")}><${Icon} name="download" /><span>${t.pull}</span></button>`}`;
}

export function view() {
  const [node, setNode] = useState("");
  const [dialog, setDialog] = useState(/** @type {any} */ (null));
  const peer = node ? peerOf(node) : null;
  const [rows, error, again] = useLoaded(() => list("list_images", "images", {}, peer), [peer, state.imagesVersion]);
  const close = () => setDialog(null);
  return html`
    <div class="view">
      <div class="head"><h1>${text.views.images}</h1>
        ${state.peers.length > 0 && html`<select class="auto" aria-label=${t.node} value=${node} onChange=${(event) => setNode(event.target.value)}><option value="">${state.health?.name}</option>
          ${state.peers.filter((one) => one.status === "online").map((one) => html`<option key=${one.id} value=${one.name}>${one.name}</option>`)}</select>`}
        <span class="gap"></span><div class="actions"><${Tools} peer=${peer} again=${again} open=${setDialog} /></div></div>
      ${error ? html`<${Failure} error=${error} retry=${again} />` : !rows ? html`<${Loading} />` : !rows.length ? html`<${Empty} icon="images" title=${t.empty}><p class="quiet">${t.emptyHint}</p><//>` : html`
        <div class="table" tabindex="0" role="region" aria-label=${t.table}><table id="images-table"><thead><tr><th scope="col">${t.columns.name}</th><th scope="col">${t.columns.size}</th><th scope="col" class="wide">${t.columns.allocated}</th><th scope="col" class="wide">${t.columns.used}</th><th scope="col" class="wider">${t.columns.created}</th><th class="does"><span class="unseen">${text.vms.actions}</span></th></tr></thead>
          <tbody>${rows.map((image) => html`<${Row} key=${refOf(image)} image=${image} peer=${peer} node=${node || state.health?.name} push=${(/** @type {any} */ one) => setDialog(one)} then=${again} />`)}</tbody></table></div>`}
      ${may("operator") && peer === null && html`<${Import} then=${again} />`}
      <${Catalogue} peer=${peer} then=${again} />
      ${dialog === "pull" && html`<${Pull} peer=${peer} close=${close} then=${again} />`}
      ${dialog === "prune" && html`<${Prune} peer=${peer} close=${close} then=${again} />`}
      ${dialog?.digest && html`<${Push} image=${refOf(dialog)} peer=${peer} close=${close} />`}
    </div>`;
}
