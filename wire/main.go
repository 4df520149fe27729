// hpk-wire carries the packets of one Pod: WireGuard in user space between a TUN device in the Pod's network namespace and a UDP
// socket on the node. It runs as the user, without privileges.
//
//	hpk-wire -tun-fd 3 -mtu 1420 [-ports 30000-31000]
//
// The TUN device is an open file descriptor that the Pod's supervisor made in the Pod's namespace and left to this process. Standard
// input is the supervisor's end of a socket pair (control.go): nothing listens that another process could connect to, and when the
// supervisor ends, so does this. The private key is made here and is never told to anyone.
package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// maxProcs is the most processors that one Pod's network uses at a time. More of them cost memory, and take from the Pod's own work.
const maxProcs = 4

type options struct {
	tunFD     int
	mtu       int
	low, high uint16
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "hpk-wire: %v\n", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	opts, err := parse(arguments)
	if err != nil {
		return err
	}
	harden()
	runtime.GOMAXPROCS(min(maxProcs, runtime.GOMAXPROCS(0)))
	control, err := net.FileConn(os.Stdin)
	if err != nil {
		return errors.New("standard input: expected the supervisor's socket; hpk-wire is started by a Pod's supervisor")
	}
	native, name, err := tun.CreateUnmonitoredTUNFromFD(opts.tunFD)
	if err != nil {
		return fmt.Errorf("-tun-fd %d: not a TUN device: %v", opts.tunFD, err)
	}
	wire, err := newWire(native, opts)
	if err != nil {
		return err
	}
	go func() {
		<-wire.device.Wait()
		fmt.Fprintf(os.Stderr, "hpk-wire: the Pod's network device %s is gone\n", name)
		os.Exit(1)
	}()
	return serve(control, wire)
}

func parse(arguments []string) (options, error) {
	var opts options
	var ports string
	flags := flag.NewFlagSet("hpk-wire", flag.ContinueOnError)
	flags.IntVar(&opts.tunFD, "tun-fd", 3, "descriptor of the TUN device")
	flags.IntVar(&opts.mtu, "mtu", 1420, "MTU of the Pod's device in bytes: that of the node's interface less 80")
	flags.StringVar(&ports, "ports", "", "UDP ports to choose from, LOW-HIGH; any free one if not given")
	if err := flags.Parse(arguments); err != nil {
		os.Exit(2) // the flag package has said what is wrong
	}
	if flags.NArg() > 0 {
		return opts, fmt.Errorf("%s: hpk-wire takes no arguments", flags.Arg(0))
	}
	if opts.mtu < 576 || opts.mtu > 65000 {
		return opts, fmt.Errorf("-mtu %d: expected 576 to 65000", opts.mtu)
	}
	if ports != "" {
		low, high, _ := strings.Cut(ports, "-")
		first, err1 := strconv.ParseUint(low, 10, 16)
		last, err2 := strconv.ParseUint(high, 10, 16)
		if err1 != nil || err2 != nil || first < 1 || first > last {
			return opts, fmt.Errorf("-ports %s: expected LOW-HIGH, for instance 30000-31000", ports)
		}
		opts.low, opts.high = uint16(first), uint16(last)
	}
	return opts, nil
}

// harden keeps the private key in this process: no core file, no debugger of another process of the same user, which the Pod's
// containers are. It also sets how signals and memory are treated.
func harden() {
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	// With huge pages each buffer that is used by half would count wholly.
	_ = unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0)
	// Slurm signals everything in a job that is to end. The containers still need the network then: the supervisor tells when it is over.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	// The collector empties the pools of buffers, which are then to be cleared anew: the limit gives it room.
	debug.SetGCPercent(100)
	setMemoryLimit(0)
}
