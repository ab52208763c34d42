// The screen of a VM: noVNC over the node's websocket.
import { socketUrl } from "./api.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { Icon } from "./icons.js";
import { Status, report } from "./parts.js";
import { peerOf } from "./store.js";
import { text } from "./text.js";

const t = text.screen;
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 8_000;
const KEYSYM_UNICODE = 0x01000000;

/** What types a character: Latin-1 as it is, others by their code point. @param {string} character */
export function keysym(character) {
  const code = /** @type {number} */ (character.codePointAt(0));
  if (code === 10) return 0xff0d;
  return code < 0x100 ? code : KEYSYM_UNICODE | code;
}

/** @param {{vm: import("./types.js").Vm}} properties */
export function view({ vm }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const remote = useRef(/** @type {any} */ (null));
  const [status, setStatus] = useState("connecting");
  useEffect(() => {
    let closed = false;
    let timer = 0;
    let pause = FIRST_PAUSE;
    const open = async () => {
      const { default: RFB } = await import("./vendor/novnc/core/rfb.js");
      if (closed) return;
      setStatus("connecting");
      const rfb = new RFB(box.current, socketUrl("screen", vm.id, peerOf(vm.node)), { shared: true });
      Object.assign(rfb, { scaleViewport: true, background: "transparent", focusOnClick: true });
      remote.current = rfb;
      rfb.addEventListener("connect", () => {
        pause = FIRST_PAUSE;
        setStatus("live");
      });
      rfb.addEventListener("disconnect", () => {
        setStatus("lost");
        if (closed) return;
        timer = window.setTimeout(open, pause);
        pause = Math.min(LONGEST_PAUSE, pause * 2);
      });
    };
    void open();
    return () => {
      closed = true;
      clearTimeout(timer);
      remote.current?.disconnect();
    };
  }, [vm.id]);
  const type = async () => {
    try {
      for (const character of await navigator.clipboard.readText()) remote.current?.sendKey(keysym(character), "");
      remote.current?.focus();
    } catch (error) {
      report(error);
    }
  };
  return html`
    <div class="console"><div class="tools"><${Status} status=${status} /><span class="gap"></span>
      <button type="button" onClick=${() => remote.current?.sendCtrlAltDel()}>${t.cad}</button><button type="button" onClick=${type}><${Icon} name="copy" /><span>${t.paste}</span></button>
      <button type="button" onClick=${() => box.current?.requestFullscreen().catch(report)}><${Icon} name="screen" /><span>${t.full}</span></button></div>
      <div class="screen typing" ref=${box} role="group" aria-label=${t.label}></div></div>`;
}
