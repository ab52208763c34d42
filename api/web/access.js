// Who may come in: tokens of programs, sessions of browsers.
import { call, list } from "./api.js";
import { ago, clock } from "./format.js";
import { html, useLoaded, useState } from "./html.js";
import { Action, Copyable, Empty, Failure, Field, Form, Loading } from "./parts.js";
import { may, state } from "./store.js";
import { text } from "./text.js";

const t = text.access;
const PERIODS = /** @type {[number | string, string][]} */ ([["", t.never], [86400, text.peers.days(1)], [2592000, text.peers.days(30)], [31536000, text.peers.days(365)]]);

function Tokens() {
  const [rows, error, again] = useLoaded(() => list("list_tokens", "tokens"), []);
  const [secret, setSecret] = useState("");
  const create = async (/** @type {FormData} */ form) => {
    const expires = Number(form.get("expires_in")) || null;
    setSecret((await call("create_token", { name: form.get("name"), role: form.get("role"), expires_in: expires })).secret);
    await again();
  };
  return html`
    <div class="card"><h2>${t.tokens}</h2><p class="quiet">${t.tokensHint}</p>
      ${error ? html`<${Failure} error=${error} retry=${again} />` : !rows ? html`<${Loading} rows=${2} />` : !rows.length ? html`<${Empty} icon="access" title=${t.noTokens} />` : html`
        <div class="scroll" tabindex="0" role="region" aria-label=${t.tokens}><table id="tokens"><thead><tr><th scope="col">${t.name}</th><th scope="col">${t.role}</th><th scope="col">${t.expires}</th><th scope="col" class="wide">${t.used}</th><th class="does"><span class="unseen">${text.vms.actions}</span></th></tr></thead>
          <tbody>${rows.map((one) => html`<tr key=${one.name}><th scope="row"><b>${one.name}</b></th><td>${one.role}</td><td>${one.expires_at ? ago(one.expires_at) : t.never}</td><td class="wide">${ago(one.last_used_at) || t.never}</td>
            <td class="does"><${Action} operation="revoke_token" label="${t.revoke}: ${one.name}" icon="trash" compact=${true} kind="plain danger" params=${{ name: one.name }} then=${again}
              question=${{ title: t.revokeTitle(one.name), body: t.revokeBody, yes: t.revoke, danger: true }} /></td></tr>`)}</tbody></table></div>`}
      ${secret && html`<p>${t.secret}</p><${Copyable} value=${secret} label=${t.secret} />`}
      <${Form} id="token" operation="create_token" label=${t.create} submit=${create}><div class="row">
        <${Field} label=${t.name}><input name="name" required maxlength="64" pattern="[A-Za-z0-9._\\-]+" spellcheck="false" /><//>
        <${Field} label=${t.role}><select name="role"><option>viewer</option><option selected>operator</option><option>admin</option></select><//>
        <${Field} label=${t.expires}><select name="expires_in">${PERIODS.map(([seconds, label]) => html`<option key=${seconds} value=${seconds}>${label}</option>`)}</select><//></div><//></div>`;
}

function BrowserSessions() {
  const [rows, error, again] = useLoaded(() => list("list_sessions", "sessions"), []);
  return html`
    <div class="card"><h2>${t.sessions}</h2>
      ${error ? html`<${Failure} error=${error} retry=${again} />` : !rows ? html`<${Loading} rows=${1} />` : !rows.length ? html`<p class="quiet">${t.noSessions}</p>` : html`
        <div class="scroll" tabindex="0" role="region" aria-label=${t.sessions}><table id="sessions"><thead><tr><th scope="col">${t.who}</th><th scope="col">${t.role}</th><th scope="col" class="wide">${t.opened}</th><th scope="col" class="wide">${t.until}</th><th class="does"><span class="unseen">${text.vms.actions}</span></th></tr></thead>
          <tbody>${rows.map((one) => html`<tr key=${one.id}><th scope="row"><b>${one.principal}</b>${one.id === state.me.session && html` <span class="tag">${t.yours}</span>`}<small>${one.agent}</small></th><td>${one.role}</td><td class="wide">${ago(one.opened_at)}</td><td class="wide">${clock(one.expires_at)}</td>
            <td class="does"><${Action} operation="end_session" label="${t.end}: ${one.principal}" icon="close" compact=${true} kind="plain danger" params=${{ id: one.id }} then=${again} /></td></tr>`)}</tbody></table></div>`}</div>`;
}

export const view = () => html`
  <div class="view"><h1>${text.views.access}</h1>
    ${may("admin") ? html`<${Tokens} />` : html`<p class="quiet">${t.needAdmin}</p>`}<${BrowserSessions} /></div>`;
