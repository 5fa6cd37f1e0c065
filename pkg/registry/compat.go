package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/linkedin/goavro/v2"
	"github.com/twmb/avro"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// Level is one of Confluent's compatibility levels.
type Level string

// The levels. Backward: the new schema reads what the old wrote; forward: the old reads what the new writes; full: both.
// Transitive: judged against every version, else against the latest.
const (
	None               Level = "NONE"
	Backward           Level = "BACKWARD"
	BackwardTransitive Level = "BACKWARD_TRANSITIVE"
	Forward            Level = "FORWARD"
	ForwardTransitive  Level = "FORWARD_TRANSITIVE"
	Full               Level = "FULL"
	FullTransitive     Level = "FULL_TRANSITIVE"
)

// ParseLevel reads a level as Confluent's API spells it.
func ParseLevel(s string) (Level, error) {
	switch l := Level(strings.ToUpper(s)); l {
	case None, Backward, BackwardTransitive, Forward, ForwardTransitive, Full, FullTransitive:
		return l, nil
	}
	return "", fmt.Errorf("compatibility level %q is none of NONE, BACKWARD, BACKWARD_TRANSITIVE, FORWARD, FORWARD_TRANSITIVE, FULL, FULL_TRANSITIVE", s)
}

func (l Level) transitive() bool { return strings.HasSuffix(string(l), "_TRANSITIVE") }

// Check judges the schema next against earlier, the versions of its subject in ascending order, and returns one reason
// per broken promise; none means compatible.
func (l Level) Check(next string, earlier []Version) []string {
	if l == None {
		return nil
	}
	if !l.transitive() && len(earlier) > 1 {
		earlier = earlier[len(earlier)-1:]
	}
	back := strings.HasPrefix(string(l), "BACKWARD") || strings.HasPrefix(string(l), "FULL")
	forth := strings.HasPrefix(string(l), "FORWARD") || strings.HasPrefix(string(l), "FULL")
	var reasons []string
	for _, v := range slices.Backward(earlier) {
		if back {
			if err := record.CheckCompatibility(next, v.Schema); err != nil {
				reasons = append(reasons, fmt.Sprintf("the new schema cannot read records of version %d: %v", v.Version, err))
			}
		}
		if forth {
			if err := record.CheckCompatibility(v.Schema, next); err != nil {
				reasons = append(reasons, fmt.Sprintf("version %d cannot read records of the new schema: %v", v.Version, err))
			}
		}
	}
	return reasons
}

// parse is the gate every schema passes: JSON of bounded depth, sound by goavro and by twmb/avro.
func parse(text string) (err error) {
	if err := depth(text); err != nil {
		return err
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("schema breaks the parser: %v", p)
		}
	}()
	if _, err := goavro.NewCodec(text); err != nil {
		return err
	}
	_, err = avro.Parse(text)
	return err
}

const maxDepth = 64

func depth(text string) error {
	if !json.Valid([]byte(text)) {
		return errors.New("schema is not JSON")
	}
	n, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if n++; n > maxDepth {
				return fmt.Errorf("schema nests deeper than %d levels", maxDepth)
			}
		case c == '}' || c == ']':
			n--
		}
	}
	return nil
}

// normal is the form in which two texts of one schema are equal: the same that srfake compares.
func normal(text string) (string, error) {
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return "", err
	}
	b, err := json.Marshal(v)
	return string(b), err
}
