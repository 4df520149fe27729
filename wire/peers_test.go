package main

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func testKey(n int) string {
	raw := make([]byte, 32)
	copy(raw, fmt.Sprintf("key %d", n))
	raw[31] = 1
	return base64.StdEncoding.EncodeToString(raw)
}

func TestChecked(t *testing.T) {
	good := peer{PublicKey: testKey(1), Endpoint: "10.0.0.7:30000", AllowedIPs: []string{"10.200.0.9/32", "10.200.0.8/32"}}
	found, err := checked([]peer{good, {PublicKey: testKey(2), Endpoint: "[fd00::1]:7"}})
	if err != nil || !slices.IsSorted(found[testKey(1)].AllowedIPs) {
		t.Fatal(found, err)
	}
	for want, bad := range map[string]peer{
		"peers[1].publicKey: \"x\"":                                    {PublicKey: "x"},
		"peers[1].publicKey: " + good.PublicKey:                        good,
		"peers[1].endpoint: \"host:1\"":                                {PublicKey: testKey(3), Endpoint: "host:1"},
		"peers[1].endpoint: \"0.0.0.0:1":                               {PublicKey: testKey(3), Endpoint: "0.0.0.0:1"},
		"peers[1].endpoint: \"10.0.0.1":                                {PublicKey: testKey(3), Endpoint: "10.0.0.1:0"},
		"peers[1].allowedIPs[0]: \"10.200.0.1/16\"":                    {PublicKey: testKey(3), AllowedIPs: []string{"10.200.0.1/16"}},
		"peers[1].allowedIPs[0]: \"10.200.0.1\"":                       {PublicKey: testKey(3), AllowedIPs: []string{"10.200.0.1"}},
		"peers[1].allowedIPs[0]: \"10.0.0.1/32\\nendpoint=1.1.1.1:1\"": {PublicKey: testKey(3), AllowedIPs: []string{"10.0.0.1/32\nendpoint=1.1.1.1:1"}},
		"peers[1].allowedIPs[0]: 10.200.0.9/32 belongs to peers[0]":    {PublicKey: testKey(3), AllowedIPs: []string{"10.200.0.9/32"}},
		"peers[1].keepalive: 70000":                                    {PublicKey: testKey(3), Keepalive: 70000},
	} {
		if _, err := checked([]peer{good, bad}); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("wanted %q, got %v", want, err)
		}
	}
}

func TestDifference(t *testing.T) {
	one := peer{PublicKey: testKey(1), Endpoint: "10.0.0.1:1", AllowedIPs: []string{"10.200.0.1/32"}}
	two := peer{PublicKey: testKey(2), Endpoint: "10.0.0.2:2", AllowedIPs: []string{"10.200.0.2/32"}, Keepalive: 25}
	moved := one
	moved.Endpoint = "10.0.0.9:9"
	hex := func(p peer) string { return "public_key=" + hexKey(p.PublicKey) + "\n" }
	for _, c := range []struct {
		have, want []peer
		text       string
		count      counts
	}{
		{nil, []peer{one, two}, hex(one) + "endpoint=10.0.0.1:1\nreplace_allowed_ips=true\nallowed_ip=10.200.0.1/32\n" +
			hex(two) + "endpoint=10.0.0.2:2\nreplace_allowed_ips=true\nallowed_ip=10.200.0.2/32\npersistent_keepalive_interval=25\n", counts{Added: 2}},
		{[]peer{one, two}, []peer{one, two}, "", counts{}},
		{[]peer{one, two}, []peer{two}, hex(one) + "remove=true\n", counts{Removed: 1}},
		{[]peer{one}, []peer{moved}, hex(one) + "endpoint=10.0.0.9:9\n", counts{Changed: 1}},
	} {
		have, _ := checked(c.have)
		want, _ := checked(c.want)
		if slices.Compare([]string{hexKey(one.PublicKey)}, []string{hexKey(two.PublicKey)}) > 0 {
			t.Fatal("the test's keys are not in order")
		}
		if text, count := difference(have, want); text != c.text || count != c.count {
			t.Errorf("got %q %+v, wanted %q %+v", text, count, c.text, c.count)
		}
	}
}

// A Pod's address goes from one key to the next when its job begins anew.
func TestAddressMoves(t *testing.T) {
	have, _ := checked([]peer{{PublicKey: testKey(1), AllowedIPs: []string{"10.200.0.1/32", "10.200.0.5/32"}}, {PublicKey: testKey(2)}})
	changes, _ := checked([]peer{{PublicKey: testKey(3), AllowedIPs: []string{"10.200.0.1/32"}}})
	want := updated(have, changes)
	if !slices.Equal(want[testKey(1)].AllowedIPs, []string{"10.200.0.5/32"}) || !slices.Equal(want[testKey(3)].AllowedIPs, []string{"10.200.0.1/32"}) || len(want) != 3 {
		t.Error(want)
	}
	if len(have[testKey(1)].AllowedIPs) != 2 {
		t.Error("the table before was changed")
	}
}
