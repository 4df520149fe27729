package main

import (
	"bufio"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// wire is the device with its peers.
type wire struct {
	device  *device.Device
	bind    *udpBind
	public  string // base64
	port    int
	mtu     int
	buffers *buffers
	stalls  atomic.Uint64

	mu    sync.Mutex
	peers table
}

// newWire makes a key, brings the device up on a UDP port, and has no peers yet.
func newWire(inner tun.Device, opts options) (*wire, error) {
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	var public device.NoisePublicKey
	copy(public[:], private.PublicKey().Bytes())
	w := &wire{public: base64.StdEncoding.EncodeToString(public[:]), mtu: opts.mtu, peers: table{}}
	w.bind = newUDPBind(conn.NewStdNetBind(), public, opts.low, opts.high)
	w.device = device.NewDevice(newTunDevice(inner, opts.mtu, w.stalled), w.bind, logger())
	if w.buffers, err = boundBuffers(w.device, maxBuffers); err != nil {
		return nil, err
	}
	close(w.bind.ready)
	if err := w.device.IpcSet("private_key=" + hex.EncodeToString(private.Bytes()) + "\n"); err != nil {
		return nil, fmt.Errorf("cannot set the key: %v", err)
	}
	if err := w.device.Up(); err != nil {
		return nil, fmt.Errorf("cannot listen for UDP on this node: %v", err)
	}
	if _, err := w.get(func(key, value string) {
		if key == "listen_port" {
			w.port, _ = strconv.Atoi(value)
		}
	}); err != nil {
		return nil, err
	}
	return w, nil
}

// stalled gives up the packets that wait for a handshake, when they hold the buffers that all others need.
func (w *wire) stalled() {
	if !w.buffers.exhausted() {
		return // just slow: this node has too much to do
	}
	w.stalls.Add(1)
	w.mu.Lock()
	keys := make([]string, 0, len(w.peers))
	for key := range w.peers {
		keys = append(keys, key)
	}
	w.mu.Unlock()
	for _, key := range keys {
		var public device.NoisePublicKey
		if _, err := base64.StdEncoding.Decode(public[:], []byte(key)); err != nil {
			continue
		}
		if peer := w.device.LookupPeer(public); peer != nil {
			peer.FlushStagedPackets()
		}
	}
}

// change applies want, a table made from ours, to the device; it returns how many peers were added, changed and removed.
func (w *wire) change(next func(have table) (table, error)) (counts, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	want, err := next(w.peers)
	if err != nil {
		return counts{}, err
	}
	delete(want, w.public) // one list may be sent to all
	text, count := difference(w.peers, want)
	setMemoryLimit(len(want))
	if text == "" {
		return count, nil
	}
	if err := w.device.IpcSet(text); err != nil {
		// cannot happen with checked values; what took effect is unknown, so begin anew from nothing
		w.device.RemoveAllPeers()
		w.peers = table{}
		return counts{}, fmt.Errorf("the device refuses the peers, all are removed: %v", err)
	}
	w.peers = want
	return count, nil
}

// get hands the device's state to call, line by line, and returns the peers' counters by public key (base64).
func (w *wire) get(call func(key, value string)) (map[string]*peerStatus, error) {
	text, err := w.device.IpcGet()
	if err != nil {
		return nil, err
	}
	found := map[string]*peerStatus{}
	var current *peerStatus
	var seconds int64
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), "=")
		switch key {
		case "private_key":
			continue
		case "public_key":
			raw, _ := hex.DecodeString(value)
			current = &peerStatus{peer: peer{PublicKey: base64.StdEncoding.EncodeToString(raw)}}
			found[current.PublicKey] = current
		}
		if current == nil {
			if call != nil {
				call(key, value)
			}
			continue
		}
		switch key {
		case "endpoint":
			current.Endpoint = value
		case "allowed_ip":
			current.AllowedIPs = append(current.AllowedIPs, value)
		case "persistent_keepalive_interval":
			current.Keepalive, _ = strconv.Atoi(value)
		case "rx_bytes":
			current.RxBytes, _ = strconv.ParseUint(value, 10, 64)
		case "tx_bytes":
			current.TxBytes, _ = strconv.ParseUint(value, 10, 64)
		case "last_handshake_time_sec":
			seconds, _ = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			nanos, _ := strconv.ParseInt(value, 10, 64)
			if seconds > 0 {
				current.LastHandshake = time.Unix(seconds, nanos).UTC().Format(time.RFC3339Nano)
			}
		}
	}
	return found, lines.Err()
}

// logger writes errors to standard error, at most logLines in a minute: no network trouble shall fill a job's log.
const logLines = 10

func logger() *device.Logger {
	var mu sync.Mutex
	var minute int64
	var lines int
	return &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf: func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			if now := time.Now().Unix() / 60; now != minute {
				minute, lines = now, 0
			}
			if lines++; lines <= logLines {
				fmt.Fprintf(os.Stderr, "hpk-wire: "+format+"\n", args...)
			}
		},
	}
}
