// The dialogs of images: pull, push, prune with a preview.
import { bytes } from "./format.js";
import { html, useLoaded, useState } from "./html.js";
import { Dialog, Failure, Field, Form, Loading, notifyDone, report } from "./parts.js";
import { run } from "./store.js";
import { text } from "./text.js";

const t = text.images;

/** @param {{peer: string | null, close: () => void, then: () => unknown}} properties */
export function Pull({ peer, close, then }) {
  const submit = (/** @type {FormData} */ form) => {
    close();
    void run("pull_image", { image: String(form.get("image")).trim(), name: form.get("name"), sha256: form.get("sha256") }, peer).then(then, report);
  };
  return html`
    <${Dialog} title=${t.pullTitle} onClose=${close}><${Form} id="pull" operation="pull_image" label=${t.pull} submit=${submit} cancel=${close}>
      <${Field} label=${t.pullWhat} hint=${t.pullHint}><input name="image" required maxlength="2048" autofocus spellcheck="false" /><//>
      <${Field} label=${t.as} hint=${t.asHint}><input name="name" maxlength="512" spellcheck="false" /><//>
      <${Field} label=${t.sha}><input name="sha256" maxlength="64" spellcheck="false" /><//><//><//>`;
}

/** @param {{image: string, peer: string | null, close: () => void}} properties */
export function Push({ image, peer, close }) {
  const submit = (/** @type {FormData} */ form) => {
    close();
    void run("push_image", { image, target: form.get("target") }, peer).then((pushed) => notifyDone(pushed.target), report);
  };
  return html`
    <${Dialog} title=${t.pushTitle(image)} onClose=${close}><${Form} id="push" operation="push_image" label=${t.push} submit=${submit} cancel=${close}>
      <${Field} label=${t.target} hint=${t.targetHint}><input name="target" required maxlength="512" autofocus spellcheck="false" /><//><//><//>`;
}

/** @param {{peer: string | null, close: () => void, then: () => unknown}} properties */
export function Prune({ peer, close, then }) {
  const [all, setAll] = useState(false);
  const [found, error] = useLoaded(() => run("prune_images", { all, dry_run: true }, peer), [all, peer]);
  const submit = async () => {
    await run("prune_images", { all }, peer);
    close();
    await then();
  };
  return html`
    <${Dialog} title=${t.pruneTitle} onClose=${close}>
      <label class="check"><input type="checkbox" checked=${all} onChange=${(event) => setAll(event.target.checked)} /> ${t.pruneAll}</label>
      ${error ? html`<${Failure} error=${error} />` : !found ? html`<${Loading} rows=${2} />` : !found.images.length ? html`<p class="quiet">${t.pruneNone}</p>` : html`
        <ul>${found.images.map((/** @type {any} */ image) => html`<li key=${image.digest + image.name}>${image.name ? `${image.name}:${image.tag}` : image.digest.slice(0, 24)} <small>${bytes(image.allocated)}</small></li>`)}</ul>
        <${Form} id="prune" operation="prune_images" label="${t.pruneDo}, ${t.pruneFrees(bytes(found.freed))}" kind="danger solid" submit=${submit} cancel=${close} />`}
    <//>`;
}
