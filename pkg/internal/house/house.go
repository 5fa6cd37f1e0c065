// Package house holds the rules of this repository as tests: where each library may be imported, how packages are named and
// documented, which modules may know of each other, what stands at the top of the tree. It has no code of its own; a rule that
// needs a person to check it belongs into CONTRIBUTING.md.
package house
