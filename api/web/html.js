// Preact, its hooks and htm, and what every component needs of them.
export { h, html, render, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/preact/preact.js";
import { useEffect, useState } from "./vendor/preact/preact.js";

/**
 * Call `work` now and every `seconds` while the page is visible; stop when the component goes.
 * @param {() => unknown} work @param {number} seconds @param {unknown[]} inputs
 */
export function useEvery(work, seconds, inputs) {
  useEffect(() => {
    const visible = () => document.visibilityState === "visible" && work();
    work();
    const timer = setInterval(visible, seconds * 1000);
    return () => clearInterval(timer);
  }, inputs);
}

/**
 * Load something when `inputs` change: `[value, error, reload]`, both null while it loads.
 * @template T @param {() => Promise<T>} load @param {unknown[]} inputs
 * @returns {[T | null, Error | null, () => Promise<void>]}
 */
export function useLoaded(load, inputs) {
  const [answer, set] = useState(/** @type {{value: T | null, error: Error | null}} */ ({ value: null, error: null }));
  const again = async () => {
    try {
      set({ value: await load(), error: null });
    } catch (error) {
      set({ value: null, error: /** @type {Error} */ (error) });
    }
  };
  useEffect(() => void again(), inputs);
  return [answer.value, answer.error, again];
}
