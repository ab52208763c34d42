// One VM: what it is, and the tabs of what can be seen of it.
import { html, useEffect, useState } from "./html.js";
import { Icon } from "./icons.js";
import { Dialog, Empty, Field, Form, Loading, Status, notifyDone } from "./parts.js";
import { may, peerOf, run, set, state } from "./store.js";
import { text } from "./text.js";
import { VmActions } from "./vm_actions.js";
import { linkOf } from "./vms.js";

const t = text.vm;

/** @typedef {import("./types.js").Vm} Vm */

/** The tabs: what loads each, whether the VM must run, and whether only its owner and admins see it. */
const TABS = /** @type {const} */ ({
  overview: { load: () => import("./vm_overview.js"), runs: false, owner: false },
  terminal: { load: () => import("./terminal.js"), runs: true, owner: true },
  screen: { load: () => import("./screen.js"), runs: true, owner: true },
  shell: { load: () => import("./shell.js"), runs: true, owner: true },
  files: { load: () => import("./files.js"), runs: true, owner: true },
  forwards: { load: () => import("./forwards.js"), runs: false, owner: false },
  settings: { load: () => import("./settings.js"), runs: false, owner: true },
  log: { load: () => import("./log.js"), runs: false, owner: true },
  events: { load: () => import("./vm_events.js"), runs: false, owner: false },
});

function Capture({ vm, close }) {
  const submit = async (/** @type {FormData} */ form) => {
    const params = { vm: vm.id, name: form.get("name"), reset_identity: form.has("reset_identity") };
    close();
    const image = await run("capture_image", params, peerOf(vm.node));
    notifyDone(`${image.name}:${image.tag}`);
  };
  return html`
    <${Dialog} title=${t.capture} kind="small" onClose=${close}>
      <${Form} operation="capture_image" label=${t.capture} submit=${submit} cancel=${close}>
        <${Field} label=${t.captureName} hint=${t.captureHint}><input name="name" required maxlength="512" defaultValue="${vm.name}-image" autofocus /><//>
        <label class="check"><input type="checkbox" name="reset_identity" /> ${t.captureReset}</label>
      <//>
    <//>`;
}

/** @param {{vm: Vm, tab: string, rest: string[]}} properties */
function Tab({ vm, tab, rest }) {
  const [loaded, setLoaded] = useState(/** @type {{tab: string, view: any} | null} */ (null));
  const about = TABS[/** @type {keyof typeof TABS} */ (tab)];
  useEffect(() => {
    let wanted = true;
    void about.load().then(({ view }) => wanted && setLoaded({ tab, view }));
    return () => void (wanted = false);
  }, [tab]);
  if (about.runs && !["running", "paused"].includes(vm.status)) return html`<${Empty} icon=${tab} title=${t.stopped}><p class="quiet">${t.startIt}</p><//>`;
  return loaded?.tab === tab ? html`<${loaded.view} key="${vm.node} ${vm.id} ${tab}" vm=${vm} rest=${rest} />` : html`<${Loading} />`;
}

/** @param {{vm: Vm, tabs: string[], tab: string}} properties */
function Tabs({ vm, tabs, tab }) {
  // On a phone not all of them fit.
  useEffect(() => document.querySelector(".tabs [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" }), [tab]);
  return html`
    <nav class="tabs" aria-label=${vm.name}>${tabs.map((name) => html`
      <a key=${name} href=${linkOf(vm, name)} aria-current=${name === tab ? "page" : null}>${t.tabs[/** @type {keyof typeof t.tabs} */ (name)]}</a>`)}</nav>`;
}

/** @param {{path: string[]}} properties */
export function view({ path }) {
  const [node, id, wanted = "overview", ...rest] = path;
  const [capturing, setCapturing] = useState(false);
  const vm = state.vms.find((one) => one.node === node && (one.id === id || one.name === id));
  if (!vm) return state.loaded ? html`<${Empty} icon="vms" title=${t.gone}><a href="#/vms">${t.back}</a><//>` : html`<${Loading} />`;
  const mine = may("operator", vm.owner, vm.node) || vm.owner === state.me.principal;
  const tabs = Object.entries(TABS).filter(([, { owner }]) => mine || !owner).map(([name]) => name);
  const tab = tabs.includes(wanted) ? wanted : "overview";
  return html`
    <div class="view vm ${["terminal", "screen", "log"].includes(tab) || (tab === "shell" && rest.length) ? "tall" : ""}">
      <div class="head"><a class="button plain compact" href="#/vms" aria-label=${t.back}><${Icon} name="back" /></a><h1>${vm.name}</h1>
        <${Status} status=${vm.status} stale=${!vm.reachable} /><span class="tag">${vm.node}</span><span class="gap"></span>
        <div class="actions"><${VmActions} vm=${vm} then=${() => void (location.hash = "#/vms")} />
          ${may("operator", vm.owner, vm.node) && vm.reachable && html`<button type="button" data-operation="capture_image" aria-label=${t.capture} onClick=${() => setCapturing(true)}><${Icon} name="images" /><span>${t.capture}</span></button>`}</div></div>
      <${Tabs} vm=${vm} tabs=${tabs} tab=${tab} />
      <${Tab} vm=${vm} tab=${tab} rest=${rest} />
      ${capturing && html`<${Capture} vm=${vm} close=${() => setCapturing(false)} />`}
    </div>`;
}
