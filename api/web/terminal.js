// The serial console of a VM in xterm.js: what it wrote before, then live, typed into as it is.
import { call, socketUrl } from "./api.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { Status } from "./parts.js";
import { peerOf } from "./store.js";
import { text } from "./text.js";

const t = text.terminal;
const BACKLOG = 65536;
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 8_000;

/** @type {typeof document.createElement} */
const createElement = Document.prototype.createElement.bind(document);

/**
 * xterm.js writes rules into `style` elements and colours into `style` attributes, which the policy of the page forbids.
 * The same through the CSSOM is allowed: this makes elements that go that way. @param {string} name
 */
function createStyled(name) {
  const element = createElement(name === "style" ? "template" : name);
  if (name !== "style") {
    element.setAttribute = (key, value) => {
      if (key === "style") element.style.cssText = value;
      else Element.prototype.setAttribute.call(element, key, value);
    };
    return element;
  }
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets.push(sheet);
  Object.defineProperty(element, "textContent", { set: (rules) => sheet.replaceSync(rules) });
  element.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((one) => one !== sheet);
    Element.prototype.remove.call(element);
  };
  return element;
}

/** The document with `createStyled`, for what xterm.js makes as it goes. */
const styledDocument = () =>
  new Proxy(document, {
    get(target, key) {
      if (key === "createElement") return createStyled;
      const value = Reflect.get(target, key, target);
      return typeof value === "function" && !value.prototype ? value.bind(target) : value;
    },
  });

/** Some of its parts take the page's own document when they are made, whatever they are given. @param {() => void} make */
function withStyledElements(make) {
  document.createElement = /** @type {any} */ (createStyled);
  try {
    make();
  } finally {
    delete (/** @type {any} */ (document).createElement);
  }
}

function styled() {
  if (document.querySelector("link[data-xterm]")) return;
  const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href: "/web/vendor/xterm/xterm.css" });
  link.dataset.xterm = "";
  document.head.append(link);
}

/** @param {HTMLElement} box */
async function openTerminal(box) {
  styled();
  const [{ Terminal }, { FitAddon }] = await Promise.all([import("./vendor/xterm/xterm.mjs"), import("./vendor/xterm/addon-fit.mjs")]);
  const terminal = new Terminal({
    documentOverride: styledDocument(), cursorBlink: true, scrollback: 5000, fontSize: 14,
    fontFamily: "ui-monospace, 'Cascadia Code', 'DejaVu Sans Mono', monospace", theme: { background: "#10151b", foreground: "#dfe6ee" },
  });
  const fit = new FitAddon();
  terminal.loadAddon(fit);
  withStyledElements(() => terminal.open(box));
  fit.fit();
  return { terminal, fit };
}

/**
 * Keep a websocket to the console open until it is closed; `heard` gets what the guest says.
 * @param {import("./types.js").Vm} vm @param {(data: string | Uint8Array) => void} heard @param {(status: string, reason: string) => void} tell
 */
function connect(vm, heard, tell) {
  const peer = peerOf(vm.node);
  /** @type {WebSocket} */
  let socket;
  let closed = false;
  let pause = FIRST_PAUSE;
  let timer = 0;
  const open = () => {
    tell("connecting", "");
    socket = new WebSocket(socketUrl("console", vm.id, peer));
    socket.binaryType = "arraybuffer";
    // What was written before comes from the log, and from then on what is heard is newer.
    let ready = false;
    socket.onopen = async () => {
      const log = await call("vm_log", { vm: vm.id, limit: BACKLOG }, peer).catch(() => null);
      if (log && !closed) heard(`\x1bc${log.text}`);
      ready = true;
      pause = FIRST_PAUSE;
      tell("open", "");
    };
    socket.onmessage = (event) => ready && heard(new Uint8Array(event.data));
    socket.onclose = (event) => {
      tell("closed", event.reason);
      if (closed) return;
      timer = window.setTimeout(open, pause);
      pause = Math.min(LONGEST_PAUSE, pause * 2);
    };
  };
  open();
  return {
    send: (/** @type {string | Uint8Array} */ data) => socket.readyState === WebSocket.OPEN && socket.send(data),
    close: () => {
      closed = true;
      clearTimeout(timer);
      socket.close();
    },
  };
}

/** @param {{vm: import("./types.js").Vm}} properties */
export function view({ vm }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const [shown, setShown] = useState({ status: "connecting", reason: "" });
  useEffect(() => {
    /** @type {(() => void)[]} */
    const undo = [];
    let gone = false;
    void openTerminal(/** @type {HTMLElement} */ (box.current)).then(({ terminal, fit }) => {
      undo.push(() => terminal.dispose());
      if (gone) return undo.forEach((one) => one());
      const line = connect(vm, (data) => terminal.write(data), (status, reason) => setShown({ status, reason }));
      const observer = new ResizeObserver(() => fit.fit());
      observer.observe(/** @type {HTMLElement} */ (box.current));
      terminal.onData((/** @type {string} */ data) => line.send(data));
      terminal.onBinary((/** @type {string} */ data) => line.send(Uint8Array.from(data, (one) => one.charCodeAt(0))));
      terminal.focus();
      undo.push(() => line.close(), () => observer.disconnect());
    });
    return () => {
      gone = true;
      undo.reverse().forEach((one) => one());
    };
  }, [vm.id]);
  const tone = { open: "live", closed: "lost" }[shown.status] ?? "connecting";
  return html`
    <div class="console"><div class="tools"><${Status} status=${tone} /><small>${shown.reason}</small></div>
      <div class="serial typing" ref=${box} role="group" aria-label=${t.label}></div></div>`;
}
