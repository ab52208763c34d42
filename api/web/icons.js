// Outline icons on a 24 × 24 grid.
import { html } from "./html.js";

/** @type {Record<string, string>} */
const PATHS = {
  vms: "M4 5h16v6H4zM4 13h16v6H4zM7 8h.01M7 16h.01",
  fleet: "M12 3v6M5 15l5-4M19 15l-5-4M12 9a2 2 0 1 0 0 4 2 2 0 0 0 0-4zM4 15h4v4H4zM16 15h4v4h-4zM10 2h4v3h-4z",
  images: "M12 3l8 4-8 4-8-4zM4 12l8 4 8-4M4 16.5l8 4 8-4",
  peers: "M9 11a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM3 19c0-3 2.700-5 6-5s6 2 6 5M16 11a2.500 2.500 0 1 0 0-5M17 14c2.500.300 4 2.200 4 5",
  access: "M8 11a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM11 12l8-8M16 7l3 3M13.500 9.500l2 2",
  audit: "M7 3h8l4 4v14H7zM15 3v4h4M10 12h6M10 16h6",
  health: "M3 12h4l2-6 4 12 2-6h6",
  plus: "M12 5v14M5 12h14",
  play: "M7 5l12 7-12 7z",
  stop: "M6 6h12v12H6z",
  power: "M12 3v8M7 6a8 8 0 1 0 10 0",
  restart: "M20 11a8 8 0 1 0-2 6M20 5v6h-6",
  pause: "M8 5v14M16 5v14",
  trash: "M5 7h14M9 7V4h6v3M7 7l1 13h8l1-13M10 11v5M14 11v5",
  terminal: "M4 5h16v14H4zM7 9l3 3-3 3M12 15h5",
  screen: "M3 5h18v11H3zM9 20h6M12 16v4",
  search: "M11 5a6 6 0 1 0 0 12 6 6 0 0 0 0-12zM20 20l-4.500-4.500",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  download: "M12 4v11M7 11l5 5 5-5M4 20h16",
  upload: "M12 16V5M7 9l5-5 5 5M4 20h16",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  activity: "M4 6h10M4 12h16M4 18h7M18 4v4M15 16v4",
  warn: "M12 4l9 16H3zM12 10v4M12 17h.01",
  check: "M5 12l5 5 9-10",
  back: "M14 6l-6 6 6 6",
  file: "M7 3h7l4 4v14H7zM14 3v5h4",
  folder: "M3 6h6l2 2h10v11H3z",
  sort: "M8 10l4-4 4 4M8 14l4 4 4-4",
};

/** @param {{name: string}} properties */
export const Icon = ({ name }) => html`
  <svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false"><path d=${PATHS[name]} /></svg>`;
