export type Node = any;
export function html(strings: TemplateStringsArray, ...values: unknown[]): any;
export function h(...all: unknown[]): any;
export function render(node: any, parent: Element): void;
export function useState<T>(initial: T | (() => T)): [T, (next: T | ((kept: T) => T)) => void];
export function useEffect(work: () => void | (() => void), inputs?: unknown[]): void;
export function useLayoutEffect(work: () => void | (() => void), inputs?: unknown[]): void;
export function useMemo<T>(make: () => T, inputs: unknown[]): T;
export function useRef<T>(initial: T): { current: T };
