package tail

import (
	"os"
	"path/filepath"
	"testing"
)

func TestBearerSaysWhatRFC7628Wants(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("abc.def\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := SASL{Mechanism: "oauthbearer", TokenFile: file}.open()
	if err != nil {
		t.Fatal(err)
	}
	state, first, err := m.Start(t.Context())
	if want := "n,,\x01auth=Bearer abc.def\x01\x01"; err != nil || string(first) != want || m.Name() != "OAUTHBEARER" {
		t.Errorf("%s says %q, %v; want %q", m.Name(), first, err, want)
	}
	if done, _, err := state.Next(t.Context(), nil); !done || err != nil {
		t.Errorf("a good login ends with %v, %v", done, err)
	}
	if done, _, err := state.Next(t.Context(), []byte(`{"status":"invalid_token"}`)); done || err == nil {
		t.Error("a refused token is taken for a login")
	}
}
