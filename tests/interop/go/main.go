// A go-libp2p peer driven over stdin: one JSON command a line, one JSON answer a line. The Python side is tests/interop.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	blankhost "github.com/libp2p/go-libp2p/p2p/host/blank"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"
)

const echoProtocol = "/contract/echo/1.0.0"

type request struct {
	ID       int    `json:"id"`
	Command  string `json:"command"`
	Address  string `json:"address"`
	Peer     string `json:"peer"`
	Protocol string `json:"protocol"`
	Size     int    `json:"size"`
}

func main() {
	node, err := newHost()
	if err != nil {
		panic(err)
	}
	defer node.Close()
	addresses := []string{}
	for _, address := range node.Addrs() {
		addresses = append(addresses, fmt.Sprintf("%s/p2p/%s", address, node.ID()))
	}
	say(map[string]any{"peer_id": node.ID().String(), "addresses": addresses})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var asked request
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			panic(err)
		}
		result, err := run(node, asked)
		if err != nil {
			say(map[string]any{"id": asked.ID, "error": err.Error()})
		} else {
			say(map[string]any{"id": asked.ID, "result": result})
		}
	}
}

// newHost is put together by hand: libp2p.New brings QUIC, WebRTC and WebTransport along, minutes of building.
func newHost() (host.Host, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	store, err := pstoremem.NewPeerstore()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(store.AddPrivKey(id, key), store.AddPubKey(id, key.GetPublic())); err != nil {
		return nil, err
	}
	bus := eventbus.NewBus()
	net, err := swarm.NewSwarm(id, store, bus)
	if err != nil {
		return nil, err
	}
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: yamux.DefaultTransport}}
	security, err := noise.New(noise.ID, key, muxers)
	if err != nil {
		return nil, err
	}
	upgrade, err := upgrader.New([]sec.SecureTransport{security}, muxers, nil, nil, nil)
	if err != nil {
		return nil, err
	}
	transport, err := tcp.NewTCPTransport(upgrade, nil, nil)
	if err != nil {
		return nil, err
	}
	listen := multiaddr.StringCast("/ip4/127.0.0.1/tcp/0")
	if err := errors.Join(net.AddTransport(transport), net.Listen(listen)); err != nil {
		return nil, err
	}
	node := blankhost.NewBlankHost(net, blankhost.WithEventBus(bus))
	node.SetStreamHandler(echoProtocol, func(stream network.Stream) {
		defer stream.Close()
		_, _ = io.Copy(stream, stream)
	})
	ping.NewPingService(node)
	ids, err := identify.NewIDService(node, identify.UserAgent("go-interop"))
	if err != nil {
		return nil, err
	}
	ids.Start()
	return node, nil
}

func say(value any) {
	if err := json.NewEncoder(os.Stdout).Encode(value); err != nil {
		panic(err)
	}
}

func run(node host.Host, asked request) (any, error) {
	ctx, cancel := context.WithTimeout(network.WithAllowLimitedConn(context.Background(), "interop"), 30*time.Second)
	defer cancel()
	if asked.Address != "" {
		info, err := peer.AddrInfoFromString(asked.Address)
		if err != nil {
			return nil, err
		}
		if err := node.Connect(ctx, *info); err != nil {
			return nil, err
		}
		asked.Peer = info.ID.String()
	}
	var far peer.ID
	if asked.Peer != "" {
		decoded, err := peer.Decode(asked.Peer)
		if err != nil {
			return nil, err
		}
		far = decoded
	}
	switch asked.Command {
	case "dial":
		return asked.Peer, nil
	case "ping":
		result := <-ping.Ping(ctx, node, far)
		return result.RTT.Seconds(), result.Error
	case "echo":
		return echo(ctx, node, far, asked)
	case "identified":
		protocols, err := node.Peerstore().GetProtocols(far)
		if err != nil {
			return nil, err
		}
		agent, err := node.Peerstore().Get(far, "AgentVersion")
		return map[string]any{"protocols": protocols, "agent": agent}, err
	case "connections":
		connections := []map[string]any{}
		for _, each := range node.Network().Conns() {
			connections = append(connections, map[string]any{
				"peer": each.RemotePeer().String(), "address": each.RemoteMultiaddr().String(), "limited": each.Stat().Limited,
			})
		}
		return connections, nil
	case "hangUp":
		return true, node.Network().ClosePeer(far)
	}
	return nil, fmt.Errorf("no command %q", asked.Command)
}

func echo(ctx context.Context, node host.Host, far peer.ID, asked request) (int, error) {
	id := protocol.ID(echoProtocol)
	if asked.Protocol != "" {
		id = protocol.ID(asked.Protocol)
	}
	stream, err := node.NewStream(ctx, far, id)
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	data := make([]byte, asked.Size)
	for i := range data {
		data[i] = byte(i % 251)
	}
	failed := make(chan error, 1)
	go func() {
		if _, err := stream.Write(data); err != nil {
			failed <- err
			return
		}
		failed <- stream.CloseWrite()
	}()
	got, err := io.ReadAll(stream)
	if err != nil {
		return 0, err
	}
	if err := <-failed; err != nil {
		return 0, err
	}
	for i, each := range got {
		if each != byte(i%251) {
			return 0, fmt.Errorf("byte %d differs", i)
		}
	}
	return len(got), nil
}
