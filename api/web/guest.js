// Whether the guest program of a VM can be asked, and what the guest lacks otherwise.
import { call } from "./api.js";
import { html, useEffect, useState } from "./html.js";
import { Empty, Loading } from "./parts.js";
import { peerOf } from "./store.js";
import { text } from "./text.js";

const EVERY = 3_000;

/** Draw `children` once the guest can be asked; a guest that boots is asked again. @param {{vm: import("./types.js").Vm, children?: any}} properties */
export function Guest({ vm, children }) {
  const [found, setFound] = useState({ ready: false, missing: "", loaded: false });
  useEffect(() => {
    let wanted = true;
    let timer = 0;
    const ask = async () => {
      const failed = (/** @type {Error} */ error) => ({ ready: false, missing: error.message });
      const report = await call("show_guest", { vm: vm.id }, peerOf(vm.node)).catch(failed);
      if (!wanted) return;
      setFound({ ready: report.ready, missing: report.missing ?? "", loaded: true });
      if (!report.ready) timer = window.setTimeout(ask, EVERY);
    };
    void ask();
    return () => {
      wanted = false;
      clearTimeout(timer);
    };
  }, [vm.id, vm.status]);
  if (found.ready) return children;
  if (!found.loaded) return html`<${Loading} />`;
  return html`<${Empty} icon="terminal" title=${text.guest.away}><p class="quiet">${found.missing}</p><p class="quiet">${text.guest.hint}</p><//>`;
}
