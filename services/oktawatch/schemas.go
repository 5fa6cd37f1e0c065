package oktawatch

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/oktawatch/oktawatch/pkg/registry"
)

func (t *tool) schemas() *cobra.Command {
	cmd := &cobra.Command{Use: "schemas", Short: "Register the schemas and check their compatibility"}
	cmd.AddCommand(t.schemasApply(), t.schemasCheck())
	return cmd
}

func (t *tool) schemasApply() *cobra.Command {
	return &cobra.Command{
		Use: "apply", Short: "Register every topic's schema with its compatibility level", Args: cobra.NoArgs,
		Long: "Registers the schema of every topic under <topic>-value and sets the subject's compatibility level. Running it again changes\nnothing. The services themselves never register.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.connect()
			if err != nil {
				return err
			}
			if err := c.needRegistry(); err != nil {
				return err
			}
			done, err := registry.Apply(cmd.Context(), c.registry, c.prefix)
			if t.output == "json" && err == nil {
				return t.json(done)
			}
			for _, a := range done {
				what := "has"
				if a.New {
					what = "registered"
				}
				fmt.Fprintf(t.out, "%-45s %s version %d, id %d, %s\n", a.Subject, what, a.Version, a.ID, a.Level)
			}
			return err
		},
	}
}

func (t *tool) schemasCheck() *cobra.Command {
	var released string
	cmd := &cobra.Command{
		Use: "check", Short: "Judge the schemas against every released version (exit 1 when a promise is broken)", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			findings, releases, err := registry.Released(released)
			if err != nil {
				return err
			}
			if t.output == "json" {
				if findings == nil {
					findings = []string{}
				}
				if err := t.json(map[string]any{"releases": releases, "findings": findings}); err != nil {
					return err
				}
			} else {
				for _, f := range findings {
					fmt.Fprintln(t.out, f)
				}
				switch {
				case releases == 0:
					fmt.Fprintln(t.out, "nothing is released yet: fields may still move")
				case len(findings) == 0:
					fmt.Fprintf(t.out, "compatible with all %d releases\n", releases)
				}
			}
			if len(findings) > 0 {
				return errFindings
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&released, "released", "schemas/released", "`directory` of the released schemas")
	return cmd
}
