package oktawatch

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/oktawatch/oktawatch/pkg/svc"
)

func isCanceled(err error) bool { return err == nil || errors.Is(err, context.Canceled) }

func (t *tool) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if t.output == "json" {
				return t.json(map[string]string{"version": svc.Version(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH})
			}
			fmt.Fprintf(t.out, "oktawatch %s (%s, %s/%s)\n", svc.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
}

func (t *tool) configuration() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Look at the configuration"}
	cmd.AddCommand(&cobra.Command{
		Use: "print", Short: "Print the configuration in force, secrets left out", Args: cobra.NoArgs,
		Long: "Prints what --config, the environment and --set add up to, as YAML that --config takes again. Behind a key that is\nempty or zero stands what that means. A key nobody knows is an error with its place.",
		RunE: func(*cobra.Command, []string) error {
			c, err := t.settings()
			if err != nil {
				return err
			}
			usualVariables(&c.Common)
			c.Ingest.FromEnv(os.Getenv)
			b, err := svc.Redacted(c)
			if err != nil {
				return err
			}
			_, err = t.out.Write(annotate(b))
			return err
		},
	})
	return cmd
}

var yamlLine = regexp.MustCompile(`^( *)(- )?([a-z0-9_]+):(?: (.*))?$`)

// annotate writes behind each empty or zero value what it stands for. It reads the lines that svc.Redacted writes, which are plain.
func annotate(text []byte) []byte {
	type level struct {
		indent int
		key    string
	}
	var at []level
	var out bytes.Buffer
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		m := yamlLine.FindStringSubmatch(line)
		if m == nil {
			out.WriteString(line + "\n")
			continue
		}
		indent := len(m[1]) + len(m[2])
		for len(at) > 0 && at[len(at)-1].indent >= indent {
			at = at[:len(at)-1]
		}
		if m[2] != "" && len(at) > 0 { // an element of the list above it
			at[len(at)-1].key = strings.TrimSuffix(at[len(at)-1].key, "[]") + "[]"
		}
		at = append(at, level{indent, m[3]})
		out.WriteString(line)
		switch m[4] {
		case `""`, "0", "0.0", "0s", "[]", "{}", "null":
			var path []string
			for _, l := range at {
				path = append(path, l.key)
			}
			key := strings.Join(path, ".")
			if meaning := cmp.Or(zeroMeans(key), zeroMeans(key+"[]")); meaning != "" {
				out.WriteString("  # " + meaning)
			}
		}
		out.WriteByte('\n')
	}
	return out.Bytes()
}

// unwell says why the answer of a health check is no; exit code 2 is Docker's own.
func (t *tool) unwell(err error) error {
	fmt.Fprintln(t.errs, "oktawatch: healthcheck: "+err.Error())
	return errFindings
}

func (t *tool) healthcheck() *cobra.Command {
	var url string
	cmd := &cobra.Command{
		Use: "healthcheck", Short: "Ask a running `oktawatch up` whether it is ready (exit 1 when not)", Args: cobra.NoArgs,
		Long: "Asks the `oktawatch up` of the data directory, or any address named by --url, and exits 0 when the answer is 200. Images without a shell\nuse it as their health check.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if url == "" {
				c, err := t.settings()
				if err != nil {
					return err
				}
				run, _, err := t.running(c)
				switch {
				case errors.Is(err, fs.ErrNotExist):
					return t.unwell(errors.New("no `oktawatch up` runs in that data directory: start one, or name an address by --url"))
				case err != nil:
					return fmt.Errorf("find a running `oktawatch up`: %w", err)
				}
				if url = run.Addresses[runAdmin]; url == "" {
					return t.unwell(errors.New("the running `oktawatch up` has no admin port (yet)"))
				}
				url += "/readyz?verbose"
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return fmt.Errorf("healthcheck: %w", err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return t.unwell(err)
			}
			defer resp.Body.Close()
			answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
			if err != nil {
				return t.unwell(fmt.Errorf("read the answer: %w", err))
			}
			if t.output == "json" {
				err = t.json(struct {
					Ready  bool     `json:"ready"`
					Status int      `json:"status"`
					URL    string   `json:"url"`
					Answer []string `json:"answer"` // line by line
				}{resp.StatusCode == http.StatusOK, resp.StatusCode, url, strings.Split(strings.TrimSpace(string(answer)), "\n")})
			} else {
				_, err = t.out.Write(answer)
			}
			if err != nil {
				return err
			}
			if resp.StatusCode != http.StatusOK {
				return errFindings
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&url, "url", "", "`address` to ask instead (GET, good is 200)")
	return cmd
}
