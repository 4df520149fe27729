package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// Handshakes per second that are looked at, and at once. The library queues a thousand of them in a packet buffer each.
const (
	handshakeRate  = 2000
	handshakeBurst = 128
)

// udpBind is the library's UDP socket with a smaller batch, a choice of ports, and a filter before anything is kept: what does not
// come from somebody who knows our public key never leaves the receive buffer.
type udpBind struct {
	conn.Bind
	low, high uint16
	ready     chan struct{}
	macs      device.CookieChecker
	dropped   atomic.Uint64

	mu     sync.Mutex
	tokens float64
	last   time.Time
}

func newUDPBind(inner conn.Bind, public device.NoisePublicKey, low, high uint16) *udpBind {
	bind := &udpBind{Bind: inner, low: low, high: high, ready: make(chan struct{}), tokens: handshakeBurst, last: time.Now()}
	bind.macs.Init(public)
	return bind
}

// BatchSize is the first thing that the device's readers ask for: they wait here until the pool of buffers has its bound.
func (bind *udpBind) BatchSize() int {
	<-bind.ready
	return batchSize
}

// Open listens on a port of the range, beginning anywhere in it, or on any.
func (bind *udpBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, got, err := bind.open(port)
	if err != nil {
		return nil, 0, err
	}
	for i, fn := range fns {
		fns[i] = (&receiver{bind: bind, inner: fn}).receive
	}
	return fns, got, nil
}

func (bind *udpBind) open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	if bind.low == 0 || port != 0 {
		return bind.Bind.Open(port)
	}
	count := int(bind.high) - int(bind.low) + 1
	start := rand.IntN(count)
	var last error
	for i := range count {
		fns, got, err := bind.Bind.Open(bind.low + uint16((start+i)%count))
		if err == nil {
			return fns, got, nil
		}
		last = err
	}
	return nil, 0, fmt.Errorf("no free UDP port in -ports %d-%d: %w", bind.low, bind.high, last)
}

// wanted tells whether the device shall see this datagram.
func (bind *udpBind) wanted(packet []byte) bool {
	if len(packet) < device.MinMessageSize {
		return false
	}
	switch binary.LittleEndian.Uint32(packet) {
	case device.MessageTransportType:
		return true // looked up by its index, and dropped there if it is nobody's
	case device.MessageInitiationType:
		return len(packet) == device.MessageInitiationSize && bind.macs.CheckMAC1(packet) && bind.allow()
	case device.MessageResponseType:
		return len(packet) == device.MessageResponseSize && bind.macs.CheckMAC1(packet) && bind.allow()
	case device.MessageCookieReplyType:
		return len(packet) == device.MessageCookieReplySize && bind.allow()
	}
	return false
}

func (bind *udpBind) allow() bool {
	bind.mu.Lock()
	defer bind.mu.Unlock()
	now := time.Now()
	bind.tokens = min(handshakeBurst, bind.tokens+now.Sub(bind.last).Seconds()*handshakeRate)
	bind.last = now
	if bind.tokens < 1 {
		return false
	}
	bind.tokens--
	return true
}

// receiver is the reader of one socket. Only one goroutine uses it.
type receiver struct {
	bind    *udpBind
	inner   conn.ReceiveFunc
	bufs    [][]byte // the caller's and, behind them, our own: the library reads a coalesced datagram into the last two
	sizes   []int
	eps     []conn.Endpoint
	own     [][]byte
	next    int
	pending int
}

func (r *receiver) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	if r.own == nil {
		r.own = spare(max(1, r.bind.Bind.BatchSize()-len(bufs)))
		size := len(bufs) + len(r.own)
		r.bufs, r.sizes, r.eps = make([][]byte, size), make([]int, size), make([]conn.Endpoint, size)
	}
	if r.pending > 0 {
		n := min(r.pending, len(bufs))
		for i := range n {
			at := len(bufs) + r.next + i
			sizes[i], eps[i] = copy(bufs[i], r.own[r.next+i][:r.sizes[at]]), r.eps[at]
		}
		r.next, r.pending = r.next+n, r.pending-n
		return n, nil
	}
	all := append(append(r.bufs[:0], bufs...), r.own...)
	n, err := r.inner(all, r.sizes, r.eps)
	if err != nil {
		return 0, err
	}
	for i := range n {
		if !r.bind.wanted(all[i][:r.sizes[i]]) {
			r.sizes[i] = 0
			r.bind.dropped.Add(1)
		}
	}
	taken := min(n, len(bufs))
	copy(sizes, r.sizes[:taken])
	copy(eps, r.eps[:taken])
	r.next, r.pending = 0, n-taken
	return taken, nil
}
