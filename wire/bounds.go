package main

import (
	"errors"
	"reflect"
	"runtime/debug"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
)

// What bounds the memory. The library's buffers have 64 KiB each, and on Linux it takes as many as packets come in faster than they
// are worked off: gigabytes. Here a reader waits when all are in use, so that packets pile up (and are dropped) in the kernel.
const (
	// batchSize is the number of packets that are handled at once. Each of the three readers holds as many buffers all the time. 64
	// packets are what one system call carries, at most, by generic segmentation.
	batchSize = 64
	// maxBuffers is the number of packet buffers. The three readers hold 3*batchSize, and as much again while they wait for the last
	// one of a batch: with less than 6*batchSize they could wait for each other for ever.
	maxBuffers = 512
	// baseMemory and peerMemory are what the garbage collector aims at, in bytes. A peer has queues and two goroutines.
	baseMemory = 56 << 20
	peerMemory = 32 << 10
)

func setMemoryLimit(peers int) {
	debug.SetMemoryLimit(baseMemory + int64(peers)*peerMemory)
}

// spare returns n buffers of 64 KiB for what is seldom needed. They are outside of the collector's heap: it would count them wholly,
// and collect all the time to stay below its limit; the system counts what has been written to.
func spare(n int) [][]byte {
	store, err := unix.Mmap(-1, 0, n<<16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		store = make([]byte, n<<16)
	}
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = store[i<<16 : (i+1)<<16 : (i+1)<<16]
	}
	return bufs
}

// buffers is the device's pool of packet buffers.
type buffers struct {
	limit uint32
	lock  *sync.Mutex
	count *uint32
}

func (b *buffers) used() uint32 {
	b.lock.Lock()
	defer b.lock.Unlock()
	return *b.count
}

// exhausted tells whether readers have to wait.
func (b *buffers) exhausted() bool {
	return b.used() >= b.limit
}

// boundBuffers gives the device a pool of at most limit packet buffers. It must be called before any packet is read.
//
// The library has the same bound for Android and iOS, but as a constant at compile time; the fields are not exported. The version is
// pinned in go.mod; should another one be built differently, this is an error at start and in the tests.
func boundBuffers(dev *device.Device, limit uint32) (*buffers, error) {
	pool := device.NewWaitPool(limit, func() any { return new([device.MaxMessageSize]byte) })
	field := inner(reflect.ValueOf(dev).Elem(), "pool", "messageBuffers")
	lock := inner(reflect.ValueOf(pool).Elem(), "lock")
	count := inner(reflect.ValueOf(pool).Elem(), "count")
	if !field.IsValid() || field.Type() != reflect.TypeFor[*device.WaitPool]() {
		return nil, errors.New("this version of wireguard has no field device.pool.messageBuffers")
	}
	if !lock.IsValid() || lock.Type() != reflect.TypeFor[sync.Mutex]() || !count.IsValid() || count.Kind() != reflect.Uint32 {
		return nil, errors.New("this version of wireguard has no fields WaitPool.lock and WaitPool.count")
	}
	*(**device.WaitPool)(unsafe.Pointer(field.UnsafeAddr())) = pool
	return &buffers{
		limit: limit,
		lock:  (*sync.Mutex)(unsafe.Pointer(lock.UnsafeAddr())),
		count: (*uint32)(unsafe.Pointer(count.UnsafeAddr())),
	}, nil
}

// inner returns a field of a field of a struct, the zero Value if there is none.
func inner(value reflect.Value, names ...string) reflect.Value {
	for _, name := range names {
		if value.Kind() != reflect.Struct {
			return reflect.Value{}
		}
		value = value.FieldByName(name)
	}
	return value
}
