// The files in a guest: folders, download, upload, removal. Their names are the guest's word and may be anything.
import { address, call, upload } from "./api.js";
import { ago, bytes, natural } from "./format.js";
import { Guest } from "./guest.js";
import { fromAddress, join, modeText, nameBytes, parents, shown, toAddress, toBase64 } from "./guest_paths.js";
import { html, useEffect, useState } from "./html.js";
import { Icon } from "./icons.js";
import { Action, Drop, Empty, Failure, Form, Loading, report } from "./parts.js";
import { ask, may, peerOf, run } from "./store.js";
import { text } from "./text.js";
import { linkOf } from "./vms.js";

const t = text.files;
const PAGE = 1000;

/** @typedef {import("./types.js").Vm} Vm */
/** @typedef {import("./types.js").FileEntry} FileEntry */

/** @param {Vm} vm @param {Uint8Array} path */
const contentUrl = (vm, path) => `${address("read_file", { vm: vm.id }, peerOf(vm.node))[0]}?${new URLSearchParams({ path_base64: toBase64(path) })}`;

/** What a path names, and the files in it, page by page. @param {Vm} vm @param {Uint8Array} path */
function useFolder(vm, path) {
  const [found, setFound] = useState(/** @type {{entry: FileEntry | null, files: FileEntry[], next: string | null, error: Error | null}} */ ({ entry: null, files: [], next: null, error: null }));
  const where = toBase64(path);
  const load = async (/** @type {string | null} */ after) => {
    try {
      const page = await call("list_files", { vm: vm.id, path_base64: where, after, limit: PAGE }, peerOf(vm.node));
      setFound((/** @type {any} */ kept) => ({ entry: page.entry, files: after ? [...kept.files, ...page.files] : page.files, next: page.next ?? null, error: null }));
    } catch (error) {
      setFound({ entry: null, files: [], next: null, error: /** @type {Error} */ (error) });
    }
  };
  useEffect(() => void load(null), [vm.id, where]);
  return { ...found, again: () => load(null), more: () => load(found.next) };
}

/** @param {{vm: Vm, folder: Uint8Array, file: FileEntry, then: () => unknown}} properties */
function Row({ vm, folder, file, then }) {
  const path = join(folder, nameBytes(file));
  const name = shown(file.name);
  const opens = file.kind === "directory" || file.kind === "link";
  const kind = file.kind === "directory" ? "folder" : "file";
  const removal = { title: t.removeTitle(name), body: kind === "folder" ? t.removeFolder : t.removeFile, yes: t.remove, danger: true };
  return html`
    <tr><th scope="row"><${Icon} name=${kind} /> ${opens ? html`<a href="${linkOf(vm, "files")}/${toAddress(path)}"><bdi>${name}</bdi></a>` : html`<bdi>${name}</bdi>`}${file.target && html`<small>→ <bdi>${shown(file.target)}</bdi></small>`}</th>
      <td>${file.kind === "file" ? bytes(file.size) : ""}</td><td class="wide">${ago(file.modified)}</td><td class="wide mono">${modeText(file.mode)}</td>
      <td class="does">${file.kind === "file" && html`<a class="button plain compact" data-operation="read_file" href=${contentUrl(vm, path)} download=${file.name} aria-label="${t.download}: ${name}" title=${t.download}><${Icon} name="download" /></a>`}
        <${Action} operation="remove_file" label="${t.remove}: ${name}" icon="trash" compact=${true} kind="plain danger" question=${removal} params=${{ vm: vm.id, path_base64: toBase64(path), recursive: kind === "folder" }}
          peer=${peerOf(vm.node)} owner=${vm.owner} node=${vm.node} then=${then} /></td></tr>`;
}

/** @param {{vm: Vm, folder: Uint8Array, files: FileEntry[], again: () => unknown}} properties */
function Tools({ vm, folder, files, again }) {
  const make = async (/** @type {FormData} */ form) => {
    await run("make_directory", { vm: vm.id, path_base64: toBase64(join(folder, nameBytes(String(form.get("name"))))) }, peerOf(vm.node));
    await again();
  };
  /** @param {File} file @param {(share: number) => void} progress @param {AbortSignal} signal */
  const send = async (file, progress, signal) => {
    const name = shown(file.name);
    if (files.some((one) => one.name === file.name) && !(await ask({ title: t.replaceTitle(name), body: t.replaceBody, yes: t.replace, danger: true }))) return;
    const query = { path_base64: toBase64(join(folder, nameBytes(file.name))), size: file.size, modified: file.lastModified / 1000 };
    await upload("write_file", { vm: vm.id, ...query }, peerOf(vm.node), file, progress, signal);
    await again();
  };
  return html`
    <${Drop} operation="write_file" label=${t.upload} hint=${t.uploadHint} many=${true} send=${send} />
    <${Form} id="folder" operation="make_directory" label=${t.make} kind="" submit=${make}>
      <input name="name" required maxlength="255" aria-label=${t.name} placeholder=${t.name} autocomplete="off" spellcheck="false" /><//>`;
}

/** @param {{vm: Vm, path: Uint8Array}} properties */
function Folder({ vm, path }) {
  const { entry, files, next, error, again, more } = useFolder(vm, path);
  const able = may("operator", vm.owner, vm.node);
  const isFolder = (/** @type {FileEntry} */ one) => Number(one.kind === "directory");
  const rows = [...files].sort((a, b) => isFolder(b) - isFolder(a) || natural(a.name, b.name));
  const removed = () => void again();
  return html`
    <section class="card" aria-label=${text.vm.tabs.files}>
      <nav class="way mono" aria-label=${t.way}>${parents(path).map(([name, folder]) => html`<a href="${linkOf(vm, "files")}/${toAddress(folder)}"><bdi>${name}</bdi></a>`)}</nav>
      ${error ? html`<${Failure} error=${error} retry=${again} />` : !entry ? html`<${Loading} />` : entry.kind !== "directory" ? html`
        <${Empty} icon="file" title=${bytes(entry.size)}><a class="button" href=${contentUrl(vm, path)} download=${entry.name}><${Icon} name="download" /><span>${t.download}</span></a><//>` : html`
        ${rows.length ? html`<div class="scroll" tabindex="0" role="region" aria-label=${t.table}><table id="files"><thead><tr><th scope="col">${t.name}</th><th scope="col">${t.size}</th><th scope="col" class="wide">${t.modified}</th><th scope="col" class="wide">${t.mode}</th><th class="does"><span class="unseen">${text.vms.actions}</span></th></tr></thead>
          <tbody>${rows.map((file) => html`<${Row} key=${file.name_base64 ?? file.name} vm=${vm} folder=${path} file=${file} then=${removed} />`)}</tbody></table></div>` : html`<${Empty} icon="folder" title=${t.empty} />`}
        ${next && html`<div class="end"><button type="button" onClick=${() => void more().catch(report)}>${text.more}</button></div>`}
        ${able && html`<${Tools} vm=${vm} folder=${path} files=${files} again=${again} />`}`}
    </section>`;
}

/** @param {{vm: Vm, rest: string[]}} properties */
export const view = ({ vm, rest }) => html`<${Guest} vm=${vm}><${Folder} vm=${vm} path=${fromAddress(rest[0])} /><//>`;
