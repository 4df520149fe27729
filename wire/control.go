package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"time"
)

// The control socket: lines of JSON. The first is ours:
//
//	{"type":"ready","version":1,"publicKey":"...","port":30123,"mtu":1420}
//
// Then each line of the supervisor is a request, and each gets one line in answer, in their order, with the same id:
//
//	{"id":1,"type":"setPeers","peers":[{"publicKey":"...","endpoint":"10.0.0.7:30123","allowedIPs":["10.200.0.9/32"],"keepalive":0}]}
//	{"id":2,"type":"updatePeers","peers":[...]}         added, or replaced wholly where the key is known
//	{"id":3,"type":"removePeers","publicKeys":["..."]}  unknown ones are no error
//	{"id":4,"type":"listPeers"}
//	{"id":5,"type":"stats"}
//
//	{"id":1,"type":"done","added":1,"changed":0,"removed":0}
//	{"id":4,"type":"peers","peers":[{..., "lastHandshake":"2026-11-24T10:00:00Z","rxBytes":0,"txBytes":0}]}
//	{"id":5,"type":"stats","peers":1,"dropped":0,"stalls":0}
//	{"id":1,"type":"error","message":"peers[0].endpoint: ..."}     nothing was changed
//
// The end of the stream ends the process.
const controlVersion = 1

// maxLine bounds one request, in bytes: some 50,000 peers.
const maxLine = 16 << 20

// writeTimeout is for a supervisor that does not read what it asked for.
const writeTimeout = 30 * time.Second

type request struct {
	ID         int64    `json:"id"`
	Type       string   `json:"type"`
	Peers      []peer   `json:"peers"`
	PublicKeys []string `json:"publicKeys"`
}

func serve(control net.Conn, w *wire) error {
	send := func(value map[string]any) error {
		line, err := json.Marshal(value)
		if err != nil {
			return err
		}
		_ = control.SetWriteDeadline(time.Now().Add(writeTimeout))
		_, err = control.Write(append(line, '\n'))
		return err
	}
	ready := map[string]any{"type": "ready", "version": controlVersion, "publicKey": w.public, "port": w.port, "mtu": w.mtu}
	if err := send(ready); err != nil {
		return ended(err)
	}
	lines := bufio.NewScanner(control)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var asked request
		answer, err := map[string]any(nil), decode(lines.Bytes(), &asked)
		if err == nil {
			answer, err = w.answer(asked)
		}
		if err != nil {
			answer = map[string]any{"type": "error", "message": err.Error()}
		}
		answer["id"] = asked.ID
		if err := send(answer); err != nil {
			return ended(err)
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return fmt.Errorf("a request of more than %d bytes", maxLine)
	}
	return ended(lines.Err())
}

// ended: the supervisor is gone, which is how this process is meant to end, unless it just does not read.
func ended(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("the supervisor does not read its answers")
	}
	return nil
}

func decode(line []byte, asked *request) error {
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(asked); err != nil {
		return fmt.Errorf("not a request: %v", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return errors.New("not a request: more than one object in a line")
	}
	return nil
}

func (w *wire) answer(asked request) (map[string]any, error) {
	var count counts
	var err error
	if asked.Peers == nil && (asked.Type == "setPeers" || asked.Type == "updatePeers") {
		return nil, errors.New("peers: expected a list")
	}
	switch asked.Type {
	case "setPeers":
		count, err = w.change(func(table) (table, error) { return checked(asked.Peers) })
	case "updatePeers":
		count, err = w.change(func(have table) (table, error) {
			changes, err := checked(asked.Peers)
			if err != nil {
				return nil, err
			}
			return updated(have, changes), nil
		})
	case "removePeers":
		for i, key := range asked.PublicKeys {
			if err := checkKey(key); err != nil {
				return nil, fmt.Errorf("publicKeys[%d]: %v", i, err)
			}
		}
		count, err = w.change(func(have table) (table, error) {
			want := maps.Clone(have)
			maps.DeleteFunc(want, func(key string, _ peer) bool { return slices.Contains(asked.PublicKeys, key) })
			return want, nil
		})
	case "listPeers":
		found, err := w.get(nil)
		if err != nil {
			return nil, err
		}
		list := make([]*peerStatus, 0, len(found))
		for _, key := range slices.Sorted(maps.Keys(found)) {
			list = append(list, found[key])
		}
		return map[string]any{"type": "peers", "peers": list}, nil
	case "stats":
		w.mu.Lock()
		defer w.mu.Unlock()
		return map[string]any{"type": "stats", "peers": len(w.peers), "dropped": w.bind.dropped.Load(), "stalls": w.stalls.Load()}, nil
	default:
		return nil, fmt.Errorf("type: %.60q: expected setPeers, updatePeers, removePeers, listPeers or stats", asked.Type)
	}
	if err != nil {
		return nil, err
	}
	return map[string]any{"type": "done", "added": count.Added, "changed": count.Changed, "removed": count.Removed}, nil
}
