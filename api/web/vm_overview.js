// What a VM is, and live charts of what it takes.
import { address, call } from "./api.js";
import { clock, disk, duration, memory } from "./format.js";
import { html, useEffect, useEvery, useLayoutEffect, useRef, useState } from "./html.js";
import { peerOf, state } from "./store.js";
import { text } from "./text.js";
import { Address } from "./vm_address.js";

const t = text.vm;
const EVERY = 2;
const KEPT = 150;
const MIB = 1 << 20;
const PICTURE_EVERY = 5;

/** @typedef {import("./types.js").Vm} Vm */
/** @typedef {{at: number, cpu: number, memory: number, read: number, written: number, received: number, sent: number}} Sample */

/** How much a second passed between two readings of the counters. @param {any} last @param {any} next @returns {Sample | null} */
export function sample(last, next) {
  const seconds = (Date.parse(next.observed_at) - Date.parse(last.observed_at)) / 1000;
  if (seconds <= 0 || next.cpu_time < last.cpu_time) return null;
  const rate = (/** @type {string} */ key) => Math.max(0, next[key] - last[key]) / seconds / MIB;
  return {
    at: Date.parse(next.observed_at) / 1000, cpu: ((next.cpu_time - last.cpu_time) / seconds) * 100, memory: next.memory_rss / MIB,
    read: rate("disk_read"), written: rate("disk_written"), received: rate("net_received"), sent: rate("net_sent"),
  };
}

/** @param {Vm} vm @returns {Sample[]} */
function useSamples(vm) {
  const [samples, setSamples] = useState(/** @type {Sample[]} */ ([]));
  const last = useRef(/** @type {any} */ (null));
  useEvery(async () => {
    if (vm.status !== "running" || !vm.reachable) return;
    const next = await call("vm_stats", { vm: vm.id }, peerOf(vm.node)).catch(() => null);
    const found = next && last.current && sample(last.current, next);
    if (next) last.current = next;
    if (found) setSamples((/** @type {Sample[]} */ kept) => [...kept.slice(-KEPT), found]);
  }, EVERY, [vm.status, vm.reachable]);
  return samples;
}

/** The style sheet of the charts, once. */
function styled() {
  if (document.querySelector("link[data-chart]")) return;
  const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href: "/web/vendor/uplot/uPlot.min.css" });
  link.dataset.chart = "";
  document.head.append(link);
}

const DARK = matchMedia("(prefers-color-scheme: dark)");

/** Whether the page is dark: a chart is drawn with the colours of when it was made. */
function useDark() {
  const [dark, setDark] = useState(DARK.matches);
  useEffect(() => {
    const changed = () => setDark(DARK.matches);
    DARK.addEventListener("change", changed);
    return () => DARK.removeEventListener("change", changed);
  }, []);
  return dark;
}

/** @param {{title: string, samples: Sample[], series: [keyof Sample, string][]}} properties */
function Chart({ title, samples, series }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const chart = useRef(/** @type {any} */ (null));
  const dark = useDark();
  const data = [samples.map((one) => one.at), ...series.map(([key]) => samples.map((one) => one[key]))];
  useEffect(() => {
    let wanted = true;
    const element = /** @type {HTMLElement} */ (box.current);
    styled();
    const observer = new ResizeObserver(() => chart.current?.setSize({ width: element.clientWidth, height: 130 }));
    void import("./vendor/uplot/uPlot.esm.js").then(({ default: UPlot }) => {
      if (!wanted) return;
      const colour = (/** @type {string} */ name) => getComputedStyle(element).getPropertyValue(name);
      const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
      chart.current = new UPlot({
        width: element.clientWidth, height: 130, legend: { show: false }, cursor: { show: false },
        scales: { y: { range: (_, __, most) => [0, Math.max(1, most * 1.15)] } },
        axes: [{ ...axis, size: 22 }, { ...axis, size: 44 }],
        series: [{}, ...series.map((_, index) => ({ stroke: colour(index ? "--warn" : "--accent"), width: 1.8, fill: index ? undefined : colour("--accent-soft"), points: { show: false } }))],
      }, data, element);
      observer.observe(element);
    });
    return () => {
      wanted = false;
      observer.disconnect();
      chart.current?.destroy();
      chart.current = null;
    };
  }, [dark]);
  useLayoutEffect(() => chart.current?.setData(data), [samples]);
  const latest = samples.at(-1);
  return html`
    <section class="card chart" aria-label=${title}><h2>${title}<span class="gap"></span>
      ${series.map(([key, label], index) => html`<small class=${index ? "warn" : "accent"}>${label} ${latest ? latest[key].toFixed(1) : "–"}</small>`)}</h2>
      <div class="plot" ref=${box}></div></section>`;
}

/** A picture of the screen now and then, where there is one. @param {{vm: Vm}} properties */
function Picture({ vm }) {
  const [count, setCount] = useState(0);
  const [broken, setBroken] = useState(false);
  useEffect(() => {
    const timer = setInterval(() => document.visibilityState === "visible" && setCount((/** @type {number} */ one) => one + 1), PICTURE_EVERY * 1000);
    return () => clearInterval(timer);
  }, []);
  const peer = peerOf(vm.node);
  const [path] = address("vm_screenshot", { vm: vm.id }, peer);
  return broken ? null : html`
    <a class="picture" href="#/vm/${encodeURIComponent(vm.node ?? "")}/${vm.id}/screen"><img src="${path}#${count}" alt=${text.screen.label} onError=${() => setBroken(true)} /></a>`;
}

/** @param {{vm: Vm}} properties */
export function view({ vm }) {
  const samples = useSamples(vm);
  const runs = vm.status === "running";
  const labels = Object.entries(vm.labels);
  const facts = [
    [t.size, `${vm.cpu_cores} × CPU · ${memory(vm.memory)} · ${disk(vm.disk_size)}`], [t.image, vm.image ?? ""], [t.address, html`<${Address} vm=${vm} />`],
    [t.up, vm.uptime === null ? "" : duration(vm.uptime)], [t.node, vm.node], [t.owner, vm.owner], [t.network, vm.network], [t.mac, vm.mac && html`<span class="mono">${vm.mac}</span>`],
    [t.accelerator, vm.hypervisor], [t.firmware, vm.firmware?.toUpperCase()], [t.created, clock(vm.created_at)], [t.expires, clock(vm.expires_at)], [t.observed, vm.reachable ? "" : clock(vm.observed_at)], [t.id, vm.id],
  ].filter(([, value]) => value);
  return html`
    ${vm.warnings.map((line) => html`<p class="banner warn" key=${line}>${line}</p>`)}
    <div class="overview">
      <section class="card" aria-label=${vm.name}><dl class="facts">${facts.map(([label, value]) => html`<dt>${label}</dt><dd>${value}</dd>`)}
        ${labels.length > 0 && html`<dt>${t.labels}</dt><dd>${labels.map(([key, value]) => html`<span class="tag" key=${key}>${key}=${value}</span> `)}</dd>`}</dl>
        ${runs && vm.reachable && (state.me.role === "admin" || vm.owner === state.me.principal) && html`<${Picture} vm=${vm} />`}</section>
      ${runs ? html`<div class="charts">
        <${Chart} title=${t.charts.cpu} samples=${samples} series=${[["cpu", t.charts.used]]} />
        <${Chart} title=${t.charts.memory} samples=${samples} series=${[["memory", t.charts.used]]} />
        <${Chart} title=${t.charts.disk} samples=${samples} series=${[["read", t.charts.read], ["written", t.charts.written]]} />
        <${Chart} title=${t.charts.net} samples=${samples} series=${[["received", t.charts.received], ["sent", t.charts.sent]]} />
      </div>` : html`<div class="card"><p class="quiet">${t.stopped} ${t.startIt}</p></div>`}
    </div>`;
}
