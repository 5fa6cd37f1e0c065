// Package metrics counts what services do and shows it to Prometheus. It is the home of the Prometheus client: the rest of the tree
// names a metric, its help and its labels, and never imports the library. A Set is a value, not a global: two services in one process
// may share one or have their own. Asking twice for one name gives the same metric; a nil *Set and everything that comes from it
// discards. Labels carry stages, topics and classes, never people, addresses or tokens.
package metrics

import (
	"fmt"
	"net/http"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// DefaultBuckets suits the time from one stage to the next: one millisecond to five minutes, in seconds.
var DefaultBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}

// Set holds the metrics of one process (or of one test).
type Set struct {
	reg *prometheus.Registry

	mu         sync.Mutex
	counters   map[string]*Counter
	gauges     map[string]*Gauge
	histograms map[string]*Histogram
	labels     map[string][]string
}

// NewSet returns a set that also carries the Go runtime's and the process's own metrics.
func NewSet() *Set {
	s := &Set{
		reg:        prometheus.NewRegistry(),
		counters:   map[string]*Counter{},
		gauges:     map[string]*Gauge{},
		histograms: map[string]*Histogram{},
		labels:     map[string][]string{},
	}
	s.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return s
}

// Handler serves the set in the Prometheus text format; that of a nil set serves an empty page.
func (s *Set) Handler() http.Handler {
	if s == nil {
		return http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	}
	return promhttp.HandlerFor(s.reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// Counter returns the counter of that name. The same name with other labels, or as another kind, is a mistake in the program: panic.
func (s *Set) Counter(name, help string, labels ...string) *Counter {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.counters[name]; c != nil {
		s.same(name, labels)
		return c
	}
	c := &Counter{vec: prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)}
	s.register(name, labels, c.vec)
	if len(labels) == 0 {
		c.one = c.vec.WithLabelValues() // a metric without labels is there from the start, at zero
	}
	s.counters[name] = c
	return c
}

// Gauge returns the gauge of that name, as Counter does.
func (s *Set) Gauge(name, help string, labels ...string) *Gauge {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.gauges[name]; g != nil {
		s.same(name, labels)
		return g
	}
	g := &Gauge{vec: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)}
	s.register(name, labels, g.vec)
	if len(labels) == 0 {
		g.one = g.vec.WithLabelValues()
	}
	s.gauges[name] = g
	return g
}

// Histogram returns the histogram of that name with DefaultBuckets, as Counter does.
func (s *Set) Histogram(name, help string, labels ...string) *Histogram {
	return s.HistogramBuckets(name, help, DefaultBuckets, labels...)
}

// HistogramBuckets is Histogram with buckets of one's own; those of the first call for a name hold.
func (s *Set) HistogramBuckets(name, help string, buckets []float64, labels ...string) *Histogram {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.histograms[name]; h != nil {
		s.same(name, labels)
		return h
	}
	h := &Histogram{vec: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)}
	s.register(name, labels, h.vec)
	if len(labels) == 0 {
		h.one = h.vec.WithLabelValues()
	}
	s.histograms[name] = h
	return h
}

func (s *Set) same(name string, labels []string) {
	if !slices.Equal(s.labels[name], labels) {
		panic(fmt.Sprintf("metrics: %s is known with labels %v, asked for with %v", name, s.labels[name], labels))
	}
}

func (s *Set) register(name string, labels []string, c prometheus.Collector) {
	if err := s.reg.Register(c); err != nil {
		panic(fmt.Sprintf("metrics: register %s: %v", name, err))
	}
	s.labels[name] = slices.Clone(labels)
}

// Counter only grows. Its name ends in _total. One with labels is counted through With.
type Counter struct {
	vec *prometheus.CounterVec
	one prometheus.Counter
}

// With picks the child with these label values, in the order the labels were named in. Keep it where it is counted per record.
func (c *Counter) With(values ...string) *Counter {
	if c == nil {
		return nil
	}
	return &Counter{one: c.vec.WithLabelValues(values...)}
}

// Inc adds one.
func (c *Counter) Inc() { c.Add(1) }

// Add adds n, which is not negative.
func (c *Counter) Add(n float64) {
	if c == nil {
		return
	}
	if c.one == nil {
		panic("metrics: a counter with labels is counted through With")
	}
	c.one.Add(n)
}

// Gauge goes up and down. One with labels is set through With.
type Gauge struct {
	vec *prometheus.GaugeVec
	one prometheus.Gauge
}

// With picks the child with these label values.
func (g *Gauge) With(values ...string) *Gauge {
	if g == nil {
		return nil
	}
	return &Gauge{one: g.vec.WithLabelValues(values...)}
}

// Delete forgets the child with these label values, for what no longer exists (a partition that moved away).
func (g *Gauge) Delete(values ...string) {
	if g != nil {
		g.vec.DeleteLabelValues(values...)
	}
}

// Set says what the value is now.
func (g *Gauge) Set(v float64) {
	if g == nil {
		return
	}
	if g.one == nil {
		panic("metrics: a gauge with labels is set through With")
	}
	g.one.Set(v)
}

// Add moves the value by n.
func (g *Gauge) Add(n float64) {
	if g == nil {
		return
	}
	if g.one == nil {
		panic("metrics: a gauge with labels is moved through With")
	}
	g.one.Add(n)
}

// Inc adds one.
func (g *Gauge) Inc() { g.Add(1) }

// Dec takes one away.
func (g *Gauge) Dec() { g.Add(-1) }

// Histogram spreads observations over buckets. Its name ends in the unit (_seconds, _bytes). One with labels is observed through With.
type Histogram struct {
	vec *prometheus.HistogramVec
	one prometheus.Observer
}

// With picks the child with these label values.
func (h *Histogram) With(values ...string) *Histogram {
	if h == nil {
		return nil
	}
	return &Histogram{one: h.vec.WithLabelValues(values...)}
}

// Observe counts v.
func (h *Histogram) Observe(v float64) {
	if h == nil {
		return
	}
	if h.one == nil {
		panic("metrics: a histogram with labels is observed through With")
	}
	h.one.Observe(v)
}
