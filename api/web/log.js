// The log of a VM's serial console, and what comes on.
import { call } from "./api.js";
import { html, useEvery, useLayoutEffect, useRef, useState } from "./html.js";
import { Empty, Failure } from "./parts.js";
import { peerOf } from "./store.js";
import { text } from "./text.js";

const t = text.log;
const EVERY = 2;
const SHOWN = 262144;
// Colours and cursor movements of a terminal.
const CONTROL = /\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]/g;

/** @param {{vm: import("./types.js").Vm}} properties */
export function view({ vm }) {
  const [shown, setShown] = useState({ text: "", error: /** @type {Error | null} */ (null), loaded: false });
  const [follow, setFollow] = useState(true);
  const next = useRef(/** @type {number | null} */ (null));
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  useEvery(async () => {
    try {
      const part = await call("vm_log", { vm: vm.id, offset: next.current }, peerOf(vm.node));
      const fresh = next.current === null || part.offset !== next.current;
      next.current = part.next_offset;
      setShown((/** @type {any} */ kept) => ({ text: ((fresh ? "" : kept.text) + part.text.replaceAll("\r\n", "\n").replace(CONTROL, "")).slice(-SHOWN), error: null, loaded: true }));
    } catch (error) {
      setShown((/** @type {any} */ kept) => ({ ...kept, error }));
    }
  }, EVERY, [vm.id]);
  useLayoutEffect(() => {
    if (follow && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [shown.text, follow]);
  if (shown.error && !shown.loaded) return html`<${Failure} error=${shown.error} />`;
  if (shown.loaded && !shown.text) return html`<${Empty} icon="audit" title=${t.empty} />`;
  return html`
    <div class="console"><div class="tools"><label class="check"><input type="checkbox" checked=${follow} onChange=${(event) => setFollow(event.target.checked)} /> ${t.follow}</label></div>
      <pre class="log" ref=${box} tabindex="0" role="log" aria-label=${t.label}>${shown.text}</pre></div>`;
}
