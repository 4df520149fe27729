package main

import (
	"errors"
	"os"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

// stallTime is how long the reader of the TUN device may be kept waiting for buffers before the packets that wait for peers which do
// not answer are given up. Such packets would keep their buffers for 90 s, and all other traffic with them.
const stallTime = 10 * time.Millisecond

// tunDevice is the library's TUN device with a smaller batch, an MTU that is told (the device is in another network namespace, where
// the library cannot ask), and no end by a packet that it does not understand.
type tunDevice struct {
	tun.Device
	mtu     int
	bufs    [][]byte // the caller's and, behind them, our own for what a large packet has more segments
	sizes   []int
	own     [][]byte
	pending int // how many of our own are still to be handed over, beginning at next
	next    int
	errors  int
	watch   watch
}

// watch tells when the reader of the device works on the same packets for stallTime. It costs the reader next to nothing: the timer
// runs while there is traffic, and not otherwise.
type watch struct {
	reads   atomic.Uint64
	busy    atomic.Bool // the reader works on what Read has returned
	armed   atomic.Bool
	timer   *time.Timer
	seen    uint64 // reads at the timer's last turn
	onStall func()
}

func (w *watch) begin() {
	w.reads.Add(1)
	w.busy.Store(true)
	if !w.armed.Load() && w.armed.CompareAndSwap(false, true) {
		w.timer.Reset(stallTime)
	}
}

func (w *watch) end() { w.busy.Store(false) }

func (w *watch) turn() {
	reads := w.reads.Load()
	if reads == w.seen {
		if w.busy.Load() {
			w.onStall()
		} else {
			w.armed.Store(false)
			if !w.busy.Load() || !w.armed.CompareAndSwap(false, true) {
				return // else the reader has just come back, and found the timer armed
			}
		}
	}
	w.seen = reads
	w.timer.Reset(stallTime)
}

// newTunDevice calls onStall whenever what was read has been worked on for stallTime.
func newTunDevice(inner tun.Device, mtu int, onStall func()) *tunDevice {
	dev := &tunDevice{Device: inner, mtu: mtu}
	dev.watch.onStall = onStall
	dev.watch.timer = time.AfterFunc(time.Hour, dev.watch.turn)
	dev.watch.timer.Stop()
	total := conn.IdealBatchSize
	dev.bufs, dev.sizes = make([][]byte, total), make([]int, total)
	dev.own = spare(total - batchSize) // whole ones, as a Pod's root may change the MTU of its device
	return dev
}

func (dev *tunDevice) MTU() (int, error) { return dev.mtu, nil }

func (dev *tunDevice) BatchSize() int { return batchSize }

// Read returns the segments of the next packet, at most len(bufs) of them.
func (dev *tunDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	dev.watch.end()
	n, err := dev.read(bufs, sizes, offset)
	dev.watch.begin()
	return n, err
}

func (dev *tunDevice) read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if dev.pending > 0 {
		n := min(dev.pending, len(bufs))
		for i := range n {
			from := dev.next + i
			size := dev.sizes[len(bufs)+from]
			copy(bufs[i][offset:], dev.own[from][offset:offset+size])
			sizes[i] = size
		}
		dev.next, dev.pending = dev.next+n, dev.pending-n
		return n, nil
	}
	all := append(append(dev.bufs[:0], bufs...), dev.own...)
	n, err := dev.Device.Read(all, dev.sizes[:len(all)], offset)
	if err != nil && !errors.Is(err, os.ErrClosed) {
		// The library would end over it, and with it the Pod's network, by one odd packet.
		if dev.errors++; dev.errors > 100 {
			time.Sleep(stallTime)
		}
		return 0, nil
	}
	dev.errors = 0
	taken := min(n, len(bufs))
	copy(sizes, dev.sizes[:taken])
	dev.next, dev.pending = 0, n-taken
	return taken, err
}
