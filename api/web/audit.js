// The audit log: who changed what, newest first.
import { call } from "./api.js";
import { clock, words } from "./format.js";
import { html, useEffect, useState } from "./html.js";
import { Copyable, Empty, Failure, Loading, report } from "./parts.js";
import { may, state } from "./store.js";
import { text } from "./text.js";

const t = text.audit;

export function view() {
  const [rows, setRows] = useState(/** @type {any[] | null} */ (null));
  const [error, setError] = useState(/** @type {Error | null} */ (null));
  const [more, setMore] = useState(false);
  const load = async (/** @type {number | null} */ before) => {
    try {
      const page = await call("list_audit", { before });
      setRows((/** @type {any[] | null} */ kept) => [...(before === null ? [] : (kept ?? [])), ...page.rows]);
      setMore(page.next !== null);
    } catch (problem) {
      before === null ? setError(/** @type {Error} */ (problem)) : report(problem);
    }
  };
  useEffect(() => void (may("admin") && load(null)), [state.me.role]);
  if (!may("admin")) return html`<div class="view"><h1>${text.views.audit}</h1><p class="quiet">${t.needAdmin}</p></div>`;
  return html`
    <div class="view"><div class="head"><h1>${text.views.audit}</h1></div>
      ${error ? html`<${Failure} error=${error} retry=${() => load(null)} />` : !rows ? html`<${Loading} />` : !rows.length ? html`<${Empty} icon="audit" title=${t.empty} />` : html`
        <div class="table" tabindex="0" role="region" aria-label=${t.table}><table id="audit"><thead><tr><th scope="col">${t.columns.at}</th><th scope="col">${t.columns.who}</th><th scope="col">${t.columns.what}</th><th scope="col">${t.columns.on}</th><th scope="col" class="wide">${t.columns.outcome}</th><th scope="col" class="wider">${t.columns.row}</th></tr></thead>
          <tbody>${rows.map((one) => html`<tr key=${one.row}><td>${clock(one.at)}</td><td class="clip">${one.principal}</td><td>${words(one.what)}</td><td class="clip">${one.on}${one.at_peer && html`<small>${text.operations.on(one.at_peer)}</small>`}</td><td class="wide clip">${one.outcome || t.begins}</td><td class="wider mono">${one.row}</td></tr>`)}</tbody></table></div>
        ${more && html`<div><button type="button" onClick=${() => load(rows[rows.length - 1].row)}>${text.more}</button></div>`}`}
      <div class="card narrow"><p class="quiet">${t.verify}</p><${Copyable} value="twinshare audit verify" label=${t.verify} /></div>
    </div>`;
}
