// A js-libp2p peer driven over stdin: one JSON command a line, one JSON answer a line. The Python side is tests/interop.
import './node20.mjs'
import { createInterface } from 'node:readline'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { dcutr } from '@libp2p/dcutr'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { createLibp2p } from 'libp2p'
import { multiaddr } from '@multiformats/multiaddr'
import { peerIdFromString } from '@libp2p/peer-id'

const ECHO = '/contract/echo/1.0.0'
const DHT = '/twinshare/kad/1.0.0'
const relay = process.argv.includes('--relay')

const passAll = async () => {}
const services = {
  identify: identify(),
  ping: ping(),
  dcutr: dcutr(),
  dht: kadDHT({
    protocol: DHT,
    clientMode: false,
    peerInfoMapper: passthroughMapper,
    validators: { twinshare: passAll },
    selectors: { twinshare: () => 0 }
  })
}
if (relay) services.relay = circuitRelayServer()

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp(), circuitRelayTransport()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionGater: { denyDialMultiaddr: () => false },
  services
})

await node.handle(ECHO, async (stream) => {
  for await (const chunk of stream) await send(stream, chunk.subarray())
  await stream.close()
}, { runOnLimitedConnection: true, maxInboundStreams: 1000 })

async function send (stream, bytes) {
  if (!stream.send(bytes)) await stream.onDrain()
}

async function echo (target, size, protocol) {
  const stream = await node.dialProtocol(target, protocol, { runOnLimitedConnection: true, maxOutboundStreams: 1000 })
  const data = new Uint8Array(size).map((_, i) => i % 251)
  const sending = (async () => {
    for (let at = 0; at < size; at += 65536) await send(stream, data.subarray(at, Math.min(at + 65536, size)))
    await stream.close()
  })()
  let got = 0
  for await (const chunk of stream) {
    for (const byte of chunk.subarray()) {
      if (byte !== got % 251) throw new Error(`byte ${got} differs`)
      got++
    }
  }
  await sending
  return got
}

// Send bytes, and give back the first that come.
async function say (target, protocol, data) {
  const stream = await node.dialProtocol(target, protocol)
  await send(stream, new Uint8Array(data))
  for await (const chunk of stream) {
    stream.abort(new Error('done'))
    return Buffer.from(chunk.subarray()).toString('base64')
  }
}

async function last (events, name) {
  for await (const event of events) if (event.name === name) return event
  throw new Error(`no ${name}`)
}

const text = new TextEncoder()
const commands = {
  dial: async ({ address }) => (await node.dial(multiaddr(address))).remotePeer.toString(),
  ping: async ({ address }) => await node.services.ping.ping(multiaddr(address)),
  echo: async ({ address, size, protocol }) => await echo(multiaddr(address), size, protocol ?? ECHO),
  identified: async ({ peer }) => {
    const { protocols, addresses, metadata } = await node.peerStore.get(peerIdFromString(peer))
    const agent = new TextDecoder().decode(metadata.get('AgentVersion'))
    return { protocols, addresses: addresses.map(each => each.multiaddr.toString()), agent }
  },
  say: async ({ address, protocol, data }) => await say(multiaddr(address), protocol, Buffer.from(data, 'base64')),
  serve: async ({ protocol, data }) => {
    await node.handle(protocol, async (stream) => { await send(stream, new Uint8Array(Buffer.from(data, 'base64'))) })
    return true
  },
  dhtPut: async ({ key, value }) => {
    for await (const event of node.services.dht.put(text.encode(key), new Uint8Array(Buffer.from(value, 'base64')))) void event
    return true
  },
  dhtGet: async ({ key }) => Buffer.from((await last(node.services.dht.get(text.encode(key)), 'VALUE')).value).toString('base64'),
  dhtFind: async ({ peer }) => (await last(node.services.dht.findPeer(peerIdFromString(peer)), 'FINAL_PEER')).peer.multiaddrs.map(String),
  dhtTable: async () => node.services.dht.routingTable?.size ?? -1,
  connections: async () => node.getConnections().map(c => ({ peer: c.remotePeer.toString(), address: c.remoteAddr.toString(), limited: c.limits != null })),
  hangUp: async ({ peer }) => { await node.hangUp(peerIdFromString(peer)); return true },
  listen: async ({ address }) => { await node.components.transportManager.listen([multiaddr(address)]); return node.getMultiaddrs().map(String) }
}

console.log(JSON.stringify({ peer_id: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) }))
for await (const line of createInterface({ input: process.stdin })) {
  const { id, command, ...args } = JSON.parse(line)
  commands[command](args).then(
    result => console.log(JSON.stringify({ id, result })),
    error => console.log(JSON.stringify({ id, error: String(error?.stack ?? error) }))
  )
}
await node.stop()
process.exit(0)
