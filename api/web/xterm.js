// A terminal of xterm.js in a box of the page, at what `connect` connects it with.
import { html, useEffect, useRef, useState } from "./html.js";
import { Status } from "./parts.js";

/**
 * @typedef {object} Connection what a terminal is connected with
 * @property {(data: string | Uint8Array) => void} send @property {() => void} close
 * @property {(columns: number, rows: number) => void} [resize]
 */
/** @typedef {(heard: (data: string | Uint8Array) => void, tell: (status: string, reason: string) => void) => Connection} Connect */

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
 * `tell` of `connect` says `connecting`, `open`, `closed` or `ended`, and why.
 * @param {{name: string, label: string, connect: Connect, children?: any}} properties
 */
export function TerminalBox({ name, label, connect, children }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const [shown, setShown] = useState({ status: "connecting", reason: "" });
  useEffect(() => {
    /** @type {(() => void)[]} */
    const undo = [];
    let gone = false;
    void openTerminal(/** @type {HTMLElement} */ (box.current)).then(({ terminal, fit }) => {
      undo.push(() => terminal.dispose());
      if (gone) return undo.forEach((one) => one());
      const connection = connect((data) => terminal.write(data), (status, reason) => {
        setShown({ status, reason });
        if (status === "open") connection.resize?.(terminal.cols, terminal.rows);
      });
      const observer = new ResizeObserver(() => fit.fit());
      observer.observe(/** @type {HTMLElement} */ (box.current));
      terminal.onResize((/** @type {{cols: number, rows: number}} */ size) => connection.resize?.(size.cols, size.rows));
      terminal.onData((/** @type {string} */ data) => connection.send(data));
      terminal.onBinary((/** @type {string} */ data) => connection.send(Uint8Array.from(data, (one) => one.charCodeAt(0))));
      terminal.focus();
      undo.push(() => connection.close(), () => observer.disconnect());
    });
    return () => {
      gone = true;
      undo.reverse().forEach((one) => one());
    };
  }, [name]);
  const tone = { open: "live", closed: "lost", ended: "ended" }[shown.status] ?? "connecting";
  return html`
    <div class="console"><div class="tools"><${Status} status=${tone} /><small>${shown.reason}</small><span class="gap"></span>${children}</div>
      <div class="serial typing" ref=${box} role="group" aria-label=${label}></div></div>`;
}
