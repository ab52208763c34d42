// The node's page: its VMs, live. Everything a VM says is set as text, never as markup.
const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

async function call(verb, path, body) {
  const options = { method: verb, headers: { Accept: "application/json" } };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options);
  const result = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(result.error), result);
  return result;
}

function note(text) {
  const line = make("p", { textContent: text });
  $("notes").append(line);
  setTimeout(() => line.remove(), 12000);
}

async function ask(question) {
  const dialog = $("ask");
  dialog.querySelector("p").textContent = question;
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  return dialog.returnValue === "yes";
}

// What is shown

const vms = new Map();
const busy = new Set();
const progress = new Map();
const COLOURS = { running: "good", stopped: "", paused: "warn", suspended: "warn", crashed: "bad" };

function span(seconds) {
  const units = [[86400, "d"], [3600, "h"], [60, "min"]];
  const [size, unit] = units.find(([size]) => seconds >= size) ?? [1, "s"];
  return `${Math.floor(seconds / size)} ${unit}`;
}

function actions(vm) {
  const path = `/api/vm/${encodeURIComponent(vm.id)}`;
  const button = (label, act, kind = "") =>
    make("button", { id: `${label} ${vm.id}`, textContent: label, className: kind, disabled: busy.has(vm.id), onclick: () => during(vm, act) });
  const start = button("Start", () => call("POST", `${path}/start`));
  const stop = button("Stop", () => stopped(vm, path));
  const remove = button("Delete", () => deleted(vm, path), "danger");
  return vm.status === "running" ? [stop, remove] : vm.status === "paused" ? [button("Resume", () => call("POST", `${path}/resume`)), stop, remove] : [start, remove];
}

async function stopped(vm, path) {
  try {
    await call("POST", `${path}/stop`);
  } catch (error) {
    if (error.code !== "deadline_exceeded") throw error;
    if (await ask(`${vm.name} does not shut down. Force power off?`)) await call("POST", `${path}/stop`, { force: true });
  }
}

async function deleted(vm, path) {
  const running = vm.status !== "stopped" ? ` It is ${vm.status}.` : "";
  if (await ask(`Delete ${vm.name} and its disk?${running}`)) await call("DELETE", path, { force: true });
}

async function during(vm, act) {
  busy.add(vm.id);
  draw();
  try {
    await act();
  } catch (error) {
    note(error.message);
  } finally {
    busy.delete(vm.id);
    await refresh();
  }
}

function row(vm) {
  const said = progress.get(vm.name) ?? (vm.reason === "user" ? "" : (vm.reason ?? "").replaceAll("_", " "));
  const badge = make("span", { className: `badge ${COLOURS[vm.status] ?? "warn"}`, textContent: vm.status });
  const cell = (text, className = "") => make("td", { className, textContent: text });
  return make("tr", {},
    make("td", {}, make("strong", { textContent: vm.name }), make("small", { textContent: said })),
    make("td", {}, badge),
    cell(vm.image ?? "", "wide"),
    cell(`${vm.cpu_cores} CPU · ${vm.memory} MiB · ${vm.disk_size} GiB`),
    cell(vm.ip ?? "", "wide"),
    cell(vm.uptime === null ? "" : span(vm.uptime), "wide"),
    make("td", {}, ...actions(vm)));
}

function draw() {
  const sorted = [...vms.values()].sort((one, other) => one.name.localeCompare(other.name));
  const focused = document.activeElement.id;
  $("vms").querySelector("tbody").replaceChildren(...sorted.map(row));
  if (focused) $(focused)?.focus();
  $("vms").hidden = sorted.length === 0;
  $("empty").hidden = sorted.length !== 0;
}

function meter(label, unit, total, available) {
  const used = Math.max(0, total - available);
  const bar = make("meter", { min: 0, max: Math.max(1, total), value: used, high: total * 0.9, optimum: 0 });
  bar.setAttribute("aria-label", label);
  return make("div", {}, make("label", {}, label, make("span", { textContent: `${used} of ${total} ${unit}` })), bar);
}

// Where it comes from

let asked = null;

function refresh() {
  asked ??= load().finally(() => { asked = null; });
  return asked;
}

async function load() {
  try {
    const [list, health, capacity] = await Promise.all([call("GET", "/api/vm"), call("GET", "/api/health"), call("GET", "/api/capacity")]);
    vms.clear();
    for (const vm of list.vms) vms.set(vm.id, vm);
    $("node").textContent = `on ${health.name}`;
    document.title = `twinshare: ${health.name}`;
    $("problems").replaceChildren(...health.problems.map((text) => make("li", { textContent: text })));
    $("capacity").replaceChildren(
      meter("Memory", "MiB", capacity.total.memory, capacity.available.memory),
      meter("CPUs", "", capacity.total.cpu, capacity.available.cpu),
      meter("Disk", "GiB", capacity.total.disk, capacity.available.disk));
    draw();
  } catch (error) {
    note(error.message);
  }
}

function live(text, kind) {
  $("live").textContent = text;
  $("live").className = `badge ${kind}`;
}

let waiting = 0;

function soon() {
  clearTimeout(waiting);
  waiting = setTimeout(refresh, 120);
}

function listen() {
  const events = new EventSource("/api/events?types=vm.*,op.*,image.*,hypervisor.*");
  events.onopen = () => { live("live", "good"); soon(); };
  events.onerror = () => live("reconnecting", "warn");
  for (const type of ["vm.state", "vm.deleted", "vm.disk_full", "image.added", "image.removed", "hypervisor.down", "hypervisor.up"]) {
    events.addEventListener(type, soon);
  }
  events.addEventListener("op.progress", (event) => {
    const { target, progress: far } = JSON.parse(event.data).data;
    progress.set(target, far?.message ?? "");
    draw();
  });
  events.addEventListener("op.done", (event) => {
    progress.delete(JSON.parse(event.data).data.target);
    soon();
  });
}

// A new VM

async function offer() {
  $("create").returnValue = "cancel";
  $("create").showModal();
  const { images } = await call("GET", "/api/image");
  const whole = images.filter((image) => image.name && !image.damaged);
  $("images").replaceChildren(...whole.map((image) => make("option", { value: `${image.name}:${image.tag}` })));
}

async function create() {
  if ($("create").returnValue !== "create") return;
  const form = new FormData($("create").querySelector("form"));
  const spec = { name: form.get("name"), image: form.get("image"), start: form.has("start") };
  for (const key of ["cpu_cores", "memory", "disk_size"]) spec[key] = Number(form.get(key));
  try {
    await call("POST", "/api/vm", spec);
  } catch (error) {
    note(error.message);
  }
  await refresh();
}

$("new").addEventListener("click", () => offer().catch((error) => note(error.message)));
$("create").addEventListener("close", create);
setInterval(refresh, 30000);
refresh();
listen();
