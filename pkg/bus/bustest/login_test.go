package bustest_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/bus/localbroker"
)

// certificate makes a certificate for 127.0.0.1 that is its own authority, and its files.
func certificate(t *testing.T) (pair tls.Certificate, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	for file, text := range map[string][]byte{certFile: certPEM, keyFile: keyPEM} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if pair, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		t.Fatal(err)
	}
	return pair, certFile, keyFile
}

// TestLogin speaks TLS and each mechanism, rightly and wrongly.
func TestLogin(t *testing.T) {
	t.Parallel()
	pair, certFile, keyFile := certificate(t)
	roots := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots.AddCert(leaf)
	server := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	mutual := server.Clone()
	mutual.ClientAuth, mutual.ClientCAs = tls.RequireAndVerifyClientCert, roots
	password := func(text string) string {
		file := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	ca := bus.TLS{CAFile: certFile}
	login := func(mechanism, pass string) bus.SASL {
		return bus.SASL{Mechanism: mechanism, Username: "u", PasswordFile: password(pass)}
	}
	with := func(mechanism string) []kfake.Opt {
		return []kfake.Opt{kfake.TLS(server), kfake.EnableSASL(), kfake.Superuser(mechanism, "u", "secret")}
	}
	for name, tc := range map[string]struct {
		opts []kfake.Opt
		tls  bus.TLS
		sasl bus.SASL
		want string // in the error; empty: works
	}{
		"tls":                   {opts: []kfake.Opt{kfake.TLS(server)}, tls: ca},
		"unknown authority":     {opts: []kfake.Opt{kfake.TLS(server)}, tls: bus.TLS{Enabled: true}, want: "check kafka.tls"},
		"plain text to tls":     {opts: []kfake.Opt{kfake.TLS(server)}, want: "kafka.tls"},
		"tls to plain text":     {tls: ca, want: "kafka.tls"},
		"client certificate":    {opts: []kfake.Opt{kfake.TLS(mutual)}, tls: bus.TLS{CAFile: certFile, CertFile: certFile, KeyFile: keyFile}},
		"no client certificate": {opts: []kfake.Opt{kfake.TLS(mutual)}, tls: ca, want: "kafka.tls"},
		"plain":                 {opts: with("PLAIN"), tls: ca, sasl: login("PLAIN", "secret")},
		"scram 256":             {opts: with("SCRAM-SHA-256"), tls: ca, sasl: login("SCRAM-SHA-256", "secret")},
		"scram 512":             {opts: with("SCRAM-SHA-512"), tls: ca, sasl: login("SCRAM-SHA-512", "secret")},
		"wrong password":        {opts: with("SCRAM-SHA-512"), tls: ca, sasl: login("SCRAM-SHA-512", "hunter2"), want: "check kafka.sasl"},
		"wrong plain password":  {opts: with("PLAIN"), tls: ca, sasl: login("PLAIN", "hunter2"), want: "check kafka.sasl"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster, err := localbroker.Open(append([]kfake.Opt{kfake.NumBrokers(1)}, tc.opts...)...)
			if err != nil {
				t.Fatal(err)
			}
			defer cluster.Close()
			b, err := bus.New(bus.Config{Brokers: cluster.ListenAddrs(), TLS: tc.tls, SASL: tc.sasl}, bus.Deps{InstanceID: "x", Log: bustest.Logger()})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			err = b.Ping(ctx)
			switch {
			case tc.want == "" && err != nil:
				t.Fatal(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("got %v, want %q", err, tc.want)
			case err != nil && strings.Contains(err.Error(), "hunter2"):
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
}

// TestOlderBroker runs on a broker that knows transactions of the first kind only, and cannot list them.
func TestOlderBroker(t *testing.T) {
	t.Parallel()
	b := bustest.StartWith(t, []bustest.Option{bustest.InProcess(kfake.MaxVersions(kversion.V2_8_0()))}, countingTopics()...)
	l := startLoad(t, b, 5*time.Millisecond)
	one := run(t, b, "one", nil, newCounter)
	owning(t, 4, one)
	two := run(t, b, "two", nil, newCounter)
	owning(t, 2, one, two)
	one.stop(t)
	owning(t, 4, two)
	exactly(t, b, l.stop())
}
