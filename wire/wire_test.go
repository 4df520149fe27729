package main

import (
	"bufio"
	"encoding/json"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// end is one Pod's wire with a TUN device of two channels and the supervisor's end of its control socket.
type end struct {
	t       *testing.T
	address netip.Addr
	tun     *tuntest.ChannelTUN
	wire    *wire
	control net.Conn
	lines   *bufio.Scanner
	served  chan error
	ready   map[string]any
}

func newEnd(t *testing.T, address string, opts options) *end {
	t.Helper()
	channel := tuntest.NewChannelTUN()
	opts.mtu = 1420
	w, err := newWire(channel.TUN(), opts)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	e := &end{t: t, address: netip.MustParseAddr(address), tun: channel, wire: w, control: ours, served: make(chan error, 1)}
	go func() { e.served <- serve(theirs, w) }()
	e.lines = bufio.NewScanner(ours)
	e.lines.Buffer(nil, maxLine)
	t.Cleanup(func() { ours.Close(); w.device.Close() })
	e.ready = e.read()
	return e
}

func (e *end) read() map[string]any {
	e.t.Helper()
	_ = e.control.SetReadDeadline(time.Now().Add(10 * time.Second))
	if !e.lines.Scan() {
		e.t.Fatal("no answer: ", e.lines.Err())
	}
	var answer map[string]any
	if err := json.Unmarshal(e.lines.Bytes(), &answer); err != nil {
		e.t.Fatal(err)
	}
	return answer
}

func (e *end) ask(line string) map[string]any {
	e.t.Helper()
	if _, err := e.control.Write([]byte(line + "\n")); err != nil {
		e.t.Fatal(err)
	}
	return e.read()
}

func (e *end) set(kind string, peers ...peer) map[string]any {
	e.t.Helper()
	line, _ := json.Marshal(map[string]any{"id": 7, "type": kind, "peers": peers})
	return e.ask(string(line))
}

func (e *end) peer() peer {
	endpoint := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(e.wire.port)).String()
	return peer{PublicKey: e.wire.public, Endpoint: endpoint, AllowedIPs: []string{e.address.String() + "/32"}}
}

// reaches sends a packet with the source from to other and tells whether it arrives.
func (e *end) reaches(other *end, from netip.Addr) bool {
	e.t.Helper()
	packet := tuntest.Ping(other.address, from)
	e.tun.Outbound <- packet
	select {
	case got := <-other.tun.Inbound:
		return string(got) == string(packet)
	case <-time.After(700 * time.Millisecond):
		return false
	}
}

func pair(t *testing.T) (*end, *end) {
	a, b := newEnd(t, "10.200.0.1", options{}), newEnd(t, "10.200.0.2", options{})
	a.set("setPeers", a.peer(), b.peer())
	b.set("setPeers", a.peer(), b.peer())
	if !a.reaches(b, a.address) || !b.reaches(a, b.address) {
		t.Fatal("the two do not reach each other")
	}
	return a, b
}

func TestReady(t *testing.T) {
	e := newEnd(t, "10.200.0.1", options{low: 42100, high: 42199})
	if port := int(e.ready["port"].(float64)); port < 42100 || port > 42199 || port != e.wire.port {
		t.Errorf("port %d", port)
	}
	if e.ready["type"] != "ready" || e.ready["mtu"] != 1420.0 || checkKey(e.ready["publicKey"].(string)) != nil || len(e.ready) != 5 {
		t.Error(e.ready)
	}
	full := options{low: uint16(e.wire.port), high: uint16(e.wire.port), mtu: 1420}
	if _, err := newWire(tuntest.NewChannelTUN().TUN(), full); err == nil || !strings.Contains(err.Error(), "listen for UDP") {
		t.Errorf("a port that is taken: %v", err)
	}
}

func TestForeignSourceIsDropped(t *testing.T) {
	a, b := pair(t)
	if a.reaches(b, netip.MustParseAddr("10.200.0.9")) {
		t.Error("a packet with another Pod's address came through")
	}
	if !a.reaches(b, a.address) {
		t.Error("and now nothing does")
	}
}

func TestListAndRemove(t *testing.T) {
	a, b := pair(t)
	list := a.ask(`{"id":3,"type":"listPeers"}`)
	if text, _ := json.Marshal(list); strings.Contains(string(text), "private") || list["id"] != 3.0 {
		t.Errorf("%s", text)
	}
	peers := list["peers"].([]any)
	if len(peers) != 1 {
		t.Fatal("itself should not be a peer of anybody: ", peers)
	}
	first := peers[0].(map[string]any)
	seen, err := time.Parse(time.RFC3339Nano, first["lastHandshake"].(string))
	if err != nil || time.Since(seen) > time.Minute || first["rxBytes"].(float64) < 100 || first["endpoint"] != b.peer().Endpoint {
		t.Error(first)
	}
	if answer := a.ask(`{"id":4,"type":"removePeers","publicKeys":["` + b.wire.public + `"]}`); answer["removed"] != 1.0 {
		t.Error(answer)
	}
	if a.reaches(b, a.address) || b.reaches(a, b.address) {
		t.Error("a removed peer is still reached")
	}
}

func TestBadRequestsChangeNothing(t *testing.T) {
	a, b := pair(t)
	for line, want := range map[string]string{
		`nonsense`:                      "not a request",
		`{"id":1,"type":"setPeers"}`:    "peers: expected a list",
		`{"id":1,"type":"x"}`:           "type: ",
		`{"id":1,"type":"stats","y":1}`: "unknown field",
		`{"id":1,"type":"setPeers","peers":[{"publicKey":"AAAA"}]}`: "peers[0].publicKey",
	} {
		if answer := a.ask(line); answer["type"] != "error" || !strings.Contains(answer["message"].(string), want) {
			t.Errorf("%s: %v", line, answer)
		}
	}
	if !a.reaches(b, a.address) {
		t.Error("a refused request changed something")
	}
}

func TestEndOfControl(t *testing.T) {
	a := newEnd(t, "10.200.0.1", options{})
	a.control.Close()
	select {
	case err := <-a.served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("it goes on without a supervisor")
	}
}

// TestDeadPeers: packets for Pods that do not answer must not keep the others waiting, nor take memory without end.
func TestDeadPeers(t *testing.T) {
	a, b := pair(t)
	peers := []peer{b.peer()}
	for i := range 40 {
		dead := peer{PublicKey: testKey(i), Endpoint: "127.0.0.1:9", AllowedIPs: []string{netip.AddrFrom4([4]byte{10, 200, 1, byte(i)}).String() + "/32"}}
		peers = append(peers, dead)
	}
	a.set("setPeers", peers...)
	for range 30 {
		for i := range 40 {
			a.tun.Outbound <- tuntest.Ping(netip.AddrFrom4([4]byte{10, 200, 1, byte(i)}), a.address)
		}
	}
	if used := a.wire.buffers.used(); used > maxBuffers {
		t.Errorf("%d buffers", used)
	}
	if a.wire.stalls.Load() == 0 {
		t.Error("1200 packets for dead peers were no stall: the test does not test")
	}
	if !a.reaches(b, a.address) {
		t.Error("dead peers block the living")
	}
}

// TestFlood: what comes from nobody is dropped before it is kept.
func TestFlood(t *testing.T) {
	a, b := pair(t)
	socket, err := net.Dial("udp", a.peer().Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	initiation := make([]byte, device.MessageInitiationSize)
	initiation[0] = device.MessageInitiationType
	transport := make([]byte, 1200)
	transport[0] = device.MessageTransportType
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 20000 {
		_, _ = socket.Write(initiation)
		_, _ = socket.Write(transport)
		_, _ = socket.Write(transport[:3])
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if after.HeapInuse > before.HeapInuse+(8<<20) {
		t.Errorf("the heap grew from %d to %d", before.HeapInuse, after.HeapInuse)
	}
	if a.wire.bind.dropped.Load() < 1000 {
		t.Errorf("only %d dropped", a.wire.bind.dropped.Load())
	}
	if used := a.wire.buffers.used(); used > 4*batchSize {
		t.Errorf("%d buffers are kept", used)
	}
	for try := 0; !b.reaches(a, b.address); try++ {
		if try == 5 {
			t.Fatal("nothing comes through after the flood")
		}
	}
}
