// Ctrl-K: any view, VM or action by a few characters.
import { Dialog } from "./parts.js";
import { html, useEffect, useState } from "./html.js";
import { Icon } from "./icons.js";
import { may, set, state } from "./store.js";
import { text } from "./text.js";
import { linkOf } from "./vms.js";

const MOST = 12;

/** @returns {{icon: string, label: string, detail: string, go: () => void}[]} */
function choices() {
  const to = (/** @type {string} */ hash) => () => void (location.hash = hash);
  return [
    ...(may("operator") ? [{ icon: "plus", label: text.vms.new, detail: "", go: () => set({ creating: {} }) }] : []),
    ...Object.entries(text.views).map(([key, label]) => ({ icon: key, label, detail: "", go: to(`#/${key}`) })),
    ...state.vms.flatMap((vm) => [
      { icon: "vms", label: vm.name, detail: `${vm.node} · ${vm.status}`, go: to(linkOf(vm)) },
      { icon: "terminal", label: `${vm.name}: ${text.act.console}`, detail: vm.node ?? "", go: to(linkOf(vm, "terminal")) },
      { icon: "screen", label: `${vm.name}: ${text.act.screen}`, detail: vm.node ?? "", go: to(linkOf(vm, "screen")) },
    ]),
  ];
}

export function view() {
  const [query, setQuery] = useState("");
  const [at, setAt] = useState(0);
  const terms = query.toLowerCase().split(/\s+/).filter(Boolean);
  const found = choices().filter(({ label, detail }) => terms.every((term) => `${label} ${detail}`.toLowerCase().includes(term))).slice(0, MOST);
  const close = () => set({ palette: false });
  const chosen = Math.min(at, found.length - 1);
  const go = (/** @type {number} */ index) => {
    close();
    found[index]?.go();
  };
  useEffect(() => document.getElementById(`choice ${chosen}`)?.scrollIntoView({ block: "nearest" }), [chosen]);
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      setAt((chosen + step + found.length) % Math.max(1, found.length));
    } else if (event.key === "Enter") {
      event.preventDefault();
      go(chosen);
    }
  };
  return html`
    <${Dialog} title=${text.palette.title} onClose=${close}>
      <div class="palette">
        <input role="combobox" aria-expanded="true" aria-controls="choices" aria-activedescendant="choice ${chosen}" aria-label=${text.palette.title} autofocus
          placeholder=${text.palette.hint} value=${query} onInput=${(event) => (setQuery(event.target.value), setAt(0))} onKeyDown=${key} />
        <ul id="choices" role="listbox" aria-label=${text.palette.title}>${found.map(({ icon, label, detail }, index) => html`
          <li key=${label + detail} id="choice ${index}" role="option" aria-selected=${index === chosen} onClick=${() => go(index)}><${Icon} name=${icon} /><span>${label}</span><small>${detail}</small></li>`)}
          ${!found.length && html`<li class="quiet" role="option" aria-selected="false">${text.palette.none}</li>`}</ul>
      </div>
    <//>`;
}
