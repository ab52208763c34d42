// Websockets of VMs, opened again when they are cut.
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 8_000;

/**
 * Keep a websocket open until it is closed. `tell` hears `connecting`, and `closed` with the reason; `exists` is asked
 * before each attempt, because a browser does not say why a handshake was refused.
 * @param {() => string} url where to connect, each time
 * @param {{opened?: () => unknown, message: (data: ArrayBuffer | string) => void, tell: (status: string, reason: string) => void,
 *   exists?: () => Promise<boolean>}} handlers
 */
export function keepOpen(url, { opened, message, tell, exists = async () => true }) {
  /** @type {WebSocket | null} */
  let socket = null;
  let closed = false;
  let pause = FIRST_PAUSE;
  let timer = 0;
  const open = async () => {
    tell("connecting", "");
    if (!(await exists()) || closed) return;
    socket = new WebSocket(url());
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      pause = FIRST_PAUSE;
      void opened?.();
    };
    socket.onmessage = (event) => message(event.data);
    socket.onclose = (event) => {
      if (closed) return;
      tell("closed", event.reason);
      timer = window.setTimeout(open, pause);
      pause = Math.min(LONGEST_PAUSE, pause * 2);
    };
  };
  void open();
  return {
    send: (/** @type {string | Uint8Array} */ data) => socket?.readyState === WebSocket.OPEN && socket.send(data),
    close: () => {
      closed = true;
      clearTimeout(timer);
      socket?.close();
    },
  };
}
