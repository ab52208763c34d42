// The shapes that the REST API answers, as far as the page uses them; for the type checker alone.
export {};

/**
 * @typedef {object} Vm
 * @property {string} id @property {string} name @property {string} status @property {number} cpu_cores
 * @property {number} memory @property {number} disk_size @property {string} hypervisor @property {string} network
 * @property {number | null} vnc_port @property {string} created_at @property {number | null} uptime
 * @property {string | null} ip @property {string | null} image @property {string} owner @property {string | null} node
 * @property {string | null} observed_at @property {boolean} reachable @property {string | null} reason
 * @property {string[]} warnings @property {Record<string, string>} labels @property {boolean} autostart
 * @property {string | null} [expires_at] @property {string | null} [guest_ip] @property {number[]} [ports]
 * @property {string | null} [mac] @property {string} [firmware]
 */
/**
 * @typedef {object} Peer
 * @property {string} id @property {string} name @property {string} status @property {string | null} path
 * @property {string | null} last_seen @property {string | null} role @property {string[]} addresses
 * @property {string | null} membership @property {string | null} admitted_by @property {string} reason
 * @property {string} cure @property {number | null} uptime
 */
/**
 * @typedef {object} Operation
 * @property {string} id @property {string} kind @property {string} target @property {string} node @property {string} state
 * @property {{done: number, total: number | null, unit: string, message: string}} progress
 * @property {any} [result] @property {{error: string, code: string} | null} [error]
 * @property {string} created_at @property {string} updated_at @property {string} principal
 * @property {string | null} [peer] the peer to ask for it; null is this node
 */
/**
 * @typedef {object} FileEntry
 * @property {string} name @property {string} kind @property {number} size @property {number} mode
 * @property {string} modified @property {string} [name_base64] @property {string} [target]
 */
/** @typedef {{id: number, message: string, kind: string, hint: string, operation: string}} Note */
/**
 * @typedef {object} Question
 * @property {string} title @property {string} [body] @property {string[]} [points] @property {string} yes
 * @property {boolean} [danger] @property {(yes: boolean) => void} answer
 */
/** @typedef {{image: string, node: string}} NewVm */
