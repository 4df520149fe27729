package main

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// peer is another Pod, as the supervisor names it.
type peer struct {
	PublicKey  string   `json:"publicKey"`          // base64, as wg(8) prints it
	Endpoint   string   `json:"endpoint,omitempty"` // ADDRESS:PORT of its socket; empty: it has to speak first
	AllowedIPs []string `json:"allowedIPs"`         // what it may send from, and what is sent to it
	Keepalive  int      `json:"keepalive,omitempty"`
}

// peerStatus is a peer with what the device knows of it.
type peerStatus struct {
	peer
	LastHandshake string `json:"lastHandshake,omitempty"` // RFC 3339
	RxBytes       uint64 `json:"rxBytes"`
	TxBytes       uint64 `json:"txBytes"`
}

// table has peers by public key.
type table map[string]peer

type counts struct {
	Added   int `json:"added"`
	Changed int `json:"changed"`
	Removed int `json:"removed"`
}

// checked returns the peers by public key in their canonical form. No key and no address may be there twice. The error names the field.
func checked(list []peer) (table, error) {
	found := make(table, len(list))
	owners := map[string]int{}
	for i, p := range list {
		if err := checkKey(p.PublicKey); err != nil {
			return nil, fmt.Errorf("peers[%d].publicKey: %v", i, err)
		}
		if _, twice := found[p.PublicKey]; twice {
			return nil, fmt.Errorf("peers[%d].publicKey: %s is there twice", i, p.PublicKey)
		}
		if p.Endpoint != "" {
			endpoint, err := netip.ParseAddrPort(p.Endpoint)
			if err != nil || endpoint.Port() == 0 || endpoint.Addr().IsUnspecified() || endpoint.Addr().IsMulticast() {
				return nil, fmt.Errorf("peers[%d].endpoint: %q: expected ADDRESS:PORT", i, p.Endpoint)
			}
			p.Endpoint = netip.AddrPortFrom(endpoint.Addr().Unmap(), endpoint.Port()).String()
		}
		if p.Keepalive < 0 || p.Keepalive > 65535 {
			return nil, fmt.Errorf("peers[%d].keepalive: %d: expected 0 to 65535 seconds", i, p.Keepalive)
		}
		addresses := make([]string, 0, len(p.AllowedIPs))
		for j, text := range p.AllowedIPs {
			prefix, err := netip.ParsePrefix(text)
			if err != nil || prefix != prefix.Masked() {
				return nil, fmt.Errorf("peers[%d].allowedIPs[%d]: %q: expected an address range as 10.1.2.3/32", i, j, text)
			}
			if other, twice := owners[prefix.String()]; twice {
				return nil, fmt.Errorf("peers[%d].allowedIPs[%d]: %s belongs to peers[%d]", i, j, prefix, other)
			}
			owners[prefix.String()] = i
			addresses = append(addresses, prefix.String())
		}
		slices.Sort(addresses)
		p.AllowedIPs = addresses
		found[p.PublicKey] = p
	}
	return found, nil
}

func checkKey(text string) error {
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != 32 {
		return fmt.Errorf("%.60q: expected 32 bytes in base64", text)
	}
	return nil
}

// updated returns have with the peers of changes added or replaced. An address that one of them has is taken from its former owner.
func updated(have, changes table) table {
	taken := map[string]string{}
	for key, p := range changes {
		for _, address := range p.AllowedIPs {
			taken[address] = key
		}
	}
	want := make(table, len(have)+len(changes))
	for key, p := range have {
		kept := p.AllowedIPs
		if slices.ContainsFunc(kept, func(address string) bool { return taken[address] != "" }) {
			kept = slices.DeleteFunc(slices.Clone(kept), func(address string) bool { return taken[address] != "" })
		}
		p.AllowedIPs = kept
		want[key] = p
	}
	maps.Copy(want, changes)
	return want
}

// difference returns the lines of the cross-platform userspace API (https://www.wireguard.com/xplatform/) that make want of have.
//
// An endpoint that is named as before is left out: the device may have learnt a newer one from the peer itself.
func difference(have, want table) (string, counts) {
	var text strings.Builder
	var count counts
	for _, key := range slices.Sorted(maps.Keys(have)) {
		if _, kept := want[key]; !kept {
			fmt.Fprintf(&text, "public_key=%s\nremove=true\n", hexKey(key))
			count.Removed++
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		now := want[key]
		before, known := have[key]
		if known && before.Endpoint == now.Endpoint && before.Keepalive == now.Keepalive && slices.Equal(before.AllowedIPs, now.AllowedIPs) {
			continue
		}
		fmt.Fprintf(&text, "public_key=%s\n", hexKey(key))
		if now.Endpoint != "" && now.Endpoint != before.Endpoint {
			fmt.Fprintf(&text, "endpoint=%s\n", now.Endpoint)
		}
		if !slices.Equal(before.AllowedIPs, now.AllowedIPs) {
			text.WriteString("replace_allowed_ips=true\n")
			for _, address := range now.AllowedIPs {
				fmt.Fprintf(&text, "allowed_ip=%s\n", address)
			}
		}
		if now.Keepalive != before.Keepalive {
			fmt.Fprintf(&text, "persistent_keepalive_interval=%d\n", now.Keepalive)
		}
		if known {
			count.Changed++
		} else {
			count.Added++
		}
	}
	return text.String(), count
}

func hexKey(key string) string {
	raw, _ := base64.StdEncoding.DecodeString(key)
	return hex.EncodeToString(raw)
}
