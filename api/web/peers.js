// The members of the fleet: invite, join, revoke with its consequences, ping.
import { call } from "./api.js";
import { ago, clock } from "./format.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { Icon } from "./icons.js";
import { Action, Copyable, Dialog, Empty, Field, Form, Loading, Status, notifyDone } from "./parts.js";
import { ask, may, refresh, run, state } from "./store.js";
import { text } from "./text.js";

const t = text.peers;
const PERIODS = /** @type {[number, string][]} */ ([[600, t.minutes(10)], [3600, t.hours(1)], [86400, t.days(1)], [604800, t.days(7)]]);
const QUIET_ZONE = 4;
const DEFAULT_PAGE = Object.assign(new URL(location.origin), { protocol: "http:", host: "127.0.0.1:8080" }).origin;

/** The modules of a QR code as one path of squares. @param {{value: string}} properties */
function QrCode({ value }) {
  const [code, setCode] = useState(/** @type {any} */ (null));
  useEffect(() => void import("./vendor/qrcode/qrcode.mjs").then(({ default: qrcode }) => {
    const made = qrcode(0, "L");
    made.addData(value);
    made.make();
    setCode(made);
  }), [value]);
  if (!code) return null;
  const count = code.getModuleCount();
  const squares = Array.from({ length: count * count }, (_, at) => [Math.floor(at / count), at % count]).filter(([row, column]) => code.isDark(row, column));
  const side = count + 2 * QUIET_ZONE;
  return html`
    <svg class="qr" viewBox="0 0 ${side} ${side}" role="img" aria-label=${t.qr} shape-rendering="crispEdges"><rect width=${side} height=${side} />
      <path d=${squares.map(([row, column]) => `M${column + QUIET_ZONE} ${row + QUIET_ZONE}h1v1h-1z`).join("")} /></svg>`;
}

function Invite({ close }) {
  const [ticket, setTicket] = useState(/** @type {any} */ (null));
  const submit = async (/** @type {FormData} */ form) => {
    setTicket(await call("invite_peer", { role: form.get("role"), expires: Number(form.get("expires")), uses: Number(form.get("uses")) }));
  };
  return html`
    <${Dialog} title=${t.inviteTitle} onClose=${close}>${ticket ? html`
      <p>${t.ticketHint}</p><${Copyable} value="twinshare peer join ${ticket.ticket}" label=${t.ticketHint} />
      <p>${t.linkHint}</p><${Copyable} value=${joinLink(ticket.ticket)} label=${t.linkHint} />
      ${(ticket.warnings ?? []).map((/** @type {string} */ line) => html`<p class="banner warn" role="alert" key=${line}>${line}</p>`)}
      <${QrCode} value=${ticket.ticket} /><p class="quiet">${t.until(clock(ticket.expires))} ${t.secret}</p>` : html`
      <${Form} id="invite" operation="invite_peer" label=${t.make} submit=${submit} cancel=${close}><div class="row">
        <${Field} label=${t.role}><select name="role"><option>viewer</option><option selected>operator</option><option>admin</option></select><//>
        <${Field} label=${t.expires}><select name="expires">${PERIODS.map(([seconds, label]) => html`<option key=${seconds} value=${seconds}>${label}</option>`)}</select><//>
        <${Field} label=${t.uses}><input name="uses" type="number" min="1" max="1000" defaultValue="1" required /><//></div><//>`}
    <//>`;
}

const LOCAL = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/;

/**
 * The page of the machine on which it is clicked, at the address that a node has without a configuration of its own.
 * The ticket is in the fragment, which no browser sends anywhere.
 * @param {string} ticket
 */
const joinLink = (ticket) => `${LOCAL.test(location.hostname) ? location.origin : DEFAULT_PAGE}/#/peers/join/${encodeURIComponent(ticket)}`;

/** @param {{close: () => void, ticket: string}} properties */
function Join({ close, ticket: given }) {
  const submit = async (/** @type {FormData} */ form) => {
    const ticket = String(form.get("ticket")).trim().split(/\s+/).pop();
    const peer = await call("join_fleet", { ticket });
    close();
    notifyDone(peer.name);
    await refresh();
  };
  return html`
    <${Dialog} title=${t.joinTitle} onClose=${close}><${Form} id="join" operation="join_fleet" label=${t.joinDo} submit=${submit} cancel=${close}>
      <${Field} label=${t.ticket} hint=${t.joinHint}><textarea name="ticket" rows="4" required autofocus spellcheck="false">${given}</textarea><//><//><//>`;
}

/** @param {import("./types.js").Peer} peer */
async function revoke(peer) {
  const effects = await call("preview_revocation", { peer: peer.id });
  const points = effects.map((/** @type {any} */ one) => `${one.name} (${one.role}) ${t.becomes[one.becomes] ?? one.becomes}`);
  if (!(await ask({ title: t.revokeTitle(peer.name), body: t.revokeBody, points, yes: t.revoke, danger: true }))) return;
  await call("revoke_peer", { peer: peer.id });
  await refresh();
}

/** @param {{peer: import("./types.js").Peer}} properties */
function Row({ peer }) {
  const [rtt, setRtt] = useState(/** @type {number | null} */ (null));
  return html`
    <tr class=${peer.status === "online" ? "" : "stale"}>
      <th scope="row"><b>${peer.name}</b><small class="mono">${peer.id}</small></th><td><${Status} status=${peer.status} /></td>
      <td class="wide">${peer.path ?? ""}${rtt !== null && html` <small>${t.rtt(rtt)}</small>`}</td><td>${peer.role ?? ""}</td>
      <td class="wide">${peer.membership ?? ""}<small>${peer.cure || peer.reason}</small></td><td class="wider">${peer.status === "online" ? "" : ago(peer.last_seen)}</td>
      <td class="does"><${Action} operation="ping_peer" label="${t.ping}: ${peer.name}" icon="activity" compact=${true} kind="plain" params=${{ peer: peer.id }} then=${(/** @type {any} */ found) => setRtt(found.rtt)} />
        <${Action} operation="revoke_peer" label="${t.revoke}: ${peer.name}" icon="trash" compact=${true} kind="plain danger" act=${() => revoke(peer)} /></td></tr>`;
}

function Self() {
  const self = state.self;
  const runs = state.health?.p2p === "started";
  return html`
    <section class="card" aria-label=${t.self}><h2>${t.self}</h2>
      <dl class="facts"><dt>${t.columns.name}</dt><dd>${self.name}</dd><dt>${t.peerId}</dt><dd class="mono">${self.id}</dd><dt>${t.columns.membership}</dt><dd>${self.membership} <small>${self.reason}</small></dd>
        <dt>${t.addresses}</dt><dd class="mono">${self.addresses.map((/** @type {string} */ one) => html`<div key=${one}>${one}</div>`)}</dd></dl>
      <div class="end">${runs ? html`<${Action} operation="stop_p2p" label=${t.stop} question=${{ title: t.stop, body: t.stopBody, yes: t.stop, danger: true }} then=${refresh} />` : html`<${Action} operation="start_p2p" label=${t.start} then=${refresh} />`}
        ${state.peers.length > 0 && html`<${Action} operation="leave_fleet" label=${t.leave} kind="danger" question=${{ title: t.leave, body: t.leaveBody, yes: t.leave, danger: true }} then=${refresh} />`}</div></section>`;
}

/** `#/peers/join/TICKET` asks whether to join, and leaves the ticket out of the history. @param {{path: string[]}} properties */
export function view({ path }) {
  const [dialog, setDialog] = useState("");
  const [ticket, setTicket] = useState("");
  useEffect(() => {
    if (path[0] !== "join") return;
    history.replaceState(null, "", "#/peers");
    setTicket(path[1] ?? "");
    setDialog("join");
  }, [path.join("/")]);
  if (!state.loaded) return html`<div class="view"><h1>${text.views.peers}</h1><${Loading} /></div>`;
  const close = () => {
    setDialog("");
    setTicket("");
  };
  return html`
    <div class="view">
      <div class="head"><h1>${text.views.peers}</h1><span class="gap"></span>${may("admin") && html`<div class="actions">
        <button type="button" data-operation="join_fleet" onClick=${() => setDialog("join")}><${Icon} name="fleet" /><span>${t.join}</span></button>
        <button type="button" class="primary" data-operation="invite_peer" onClick=${() => setDialog("invite")}><${Icon} name="plus" /><span>${t.invite}</span></button></div>`}</div>
      ${state.peers.length ? html`<div class="table" tabindex="0" role="region" aria-label=${t.table}><table id="peers-table"><thead><tr><th scope="col">${t.columns.name}</th><th scope="col">${t.columns.status}</th><th scope="col" class="wide">${t.columns.path}</th><th scope="col">${t.columns.role}</th><th scope="col" class="wide">${t.columns.membership}</th><th scope="col" class="wider">${t.columns.seen}</th><th class="does"><span class="unseen">${text.vms.actions}</span></th></tr></thead>
        <tbody>${state.peers.map((peer) => html`<${Row} key=${peer.id} peer=${peer} />`)}</tbody></table></div>` : html`<${Empty} icon="peers" title=${t.empty}><p class="quiet">${t.emptyHint}</p><//>`}
      <${Self} />
      ${dialog === "invite" && html`<${Invite} close=${close} />`}${dialog === "join" && html`<${Join} close=${close} ticket=${ticket} />`}
    </div>`;
}
