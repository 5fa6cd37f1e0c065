package record

import "slices"

// keepView is the size of a payload after which a view gives its memory back.
const keepView = 256 << 10

// viewState is what a view keeps beside the decoded sections.
type viewState struct {
	b      []byte
	off    [sectionCount + 1]int // off[i] is where section i+1 begins, for i <= walked
	walked int
	have   SectionSet // asked for
	some   SectionSet // there, not null, decoded without error
	err    error
	r      wire // the one reader, here so that it is not made anew for each section
}

func (v *viewState) keep(r *wire) {
	if r.err != nil && v.err == nil {
		v.err = decodeError("system_log", r.err)
	}
}

// at returns the reader at the begin of a section, walking to it where nobody has been.
func (v *viewState) at(s Section) *wire {
	i := int(s) - 1
	r := &v.r
	*r = wire{b: v.b, alias: true}
	if v.err != nil {
		r.fail(v.err)
		return r
	}
	if v.walked < i {
		r.i = v.off[v.walked]
		for v.walked < i {
			skipSection(r, Section(v.walked+1))
			if r.err != nil {
				v.keep(r)
				return r
			}
			v.walked++
			v.off[v.walked] = r.i
		}
	}
	r.i = v.off[i]
	return r
}

// open is at for a section that is decoded once.
func (v *viewState) open(s Section) *wire {
	v.have = v.have.Add(s)
	v.some &^= 1 << s
	return v.at(s)
}

// done notes where the section ended, so that nobody walks over it again.
func (v *viewState) done(s Section, r *wire) {
	if r.err != nil {
		return
	}
	v.some = v.some.Add(s)
	if v.walked == int(s)-1 {
		v.walked = int(s)
		v.off[v.walked] = r.i
	}
}

// Reset takes a payload: unframed bytes in this package's own schema, see Serde.Payload. It reads the first fields and
// says when they are broken; what lies behind them is found broken when it is asked for (Err), or by Check.
func (v *SystemLogView) Reset(payload []byte) error {
	if len(v.b) > keepView {
		*v = SystemLogView{}
	}
	v.b, v.have, v.some, v.err = payload, 0, 0, nil
	v.readIndex()
	return v.err
}

// Load takes a record by encoding it into fresh bytes.
func (v *SystemLogView) Load(s *SystemLog) error {
	b, err := s.AppendAvro(nil)
	if err != nil {
		return err
	}
	return v.Reset(b)
}

// Err is the first error that reading met since Reset. Sections behind it read as null.
func (v *SystemLogView) Err() error { return v.err }

// Check walks the whole payload and returns the first error.
func (v *SystemLogView) Check() error {
	r := v.at(sectionCount)
	skipSection(r, sectionCount)
	_ = r.end()
	v.keep(r)
	return v.err
}

// Payload is what Reset took.
func (v *SystemLogView) Payload() []byte { return v.b }

// SectionBytes is one section as it is encoded, nil after an error. Equal sections have equal bytes.
func (v *SystemLogView) SectionBytes(s Section) []byte {
	if s < 1 || s > sectionCount {
		return nil
	}
	r := v.at(s)
	i := r.i
	skipSection(r, s)
	v.keep(r)
	if r.err != nil {
		return nil
	}
	return v.b[i:r.i:r.i]
}

// Full decodes everything into a record of its own that shares no memory with the payload.
func (v *SystemLogView) Full() (*SystemLog, error) {
	s := new(SystemLog)
	if err := s.DecodeAvro(v.b); err != nil {
		return nil, err
	}
	return s, nil
}

// Clone returns a view of a copy of the payload, nothing decoded yet.
func (v *SystemLogView) Clone() *SystemLogView {
	c := new(SystemLogView)
	_ = c.Reset(slices.Clone(v.b)) // an error stays in c.Err
	return c
}

// Identity is what makes the event one event: its uuid, with the content hash where the uuid was used twice.
func (v *SystemLogView) Identity() string {
	if h := v.Derived().ContentHash; h != "" {
		return v.UUID() + "#" + h
	}
	return v.UUID()
}

// Org is Okta's org id.
func (v *SystemLogView) Org() string { return v.Derived().Org }

// Lane is live or the id of a run.
func (v *SystemLogView) Lane() string { return v.Derived().Lane }

// Copy is 1 or 2.
func (v *SystemLogView) Copy() int { return int(v.Derived().Copy) }

// Partial says that a complete copy follows or came before.
func (v *SystemLogView) Partial() bool { return v.Derived().Partial }

// OutcomeResult is outcome.result, read without what follows it.
func (v *SystemLogView) OutcomeResult() string { return v.firstText(SectionOutcome, 0) }

// OutcomeReason is outcome.reason.
func (v *SystemLogView) OutcomeReason() string { return v.firstText(SectionOutcome, 1) }

// ActorID is actor.id, read without what follows it.
func (v *SystemLogView) ActorID() string { return v.firstText(SectionActor, 0) }

// firstText reads the text at place n of a nullable section that begins with texts.
func (v *SystemLogView) firstText(s Section, n int) string {
	r := v.at(s)
	if !r.some() {
		v.keep(r)
		return ""
	}
	for range n {
		r.raw()
	}
	x := r.str()
	v.keep(r)
	return x
}
