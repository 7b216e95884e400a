package wechatsim

import (
	"bytes"
	"encoding/json"
	"slices"
)

// answer is the JSON object that answers a call, its fields in their order.
type answer struct {
	fields  []field
	errcode int    // 0 if it has none
	rid     string // by which the call can be looked up, or ""
}

type field struct {
	name  string
	value any // of a type and value that has JSON
}

// answered is a good answer with the given fields.
func answered(fields ...field) answer {
	return answer{fields: fields}
}

// answeredOK is a good answer of the APIs that say so in as many words.
func answeredOK(fields ...field) answer {
	return answered(append([]field{{"errcode", 0}, {"errmsg", "ok"}}, fields...)...)
}

// set gives a field another value; one that is not there is added at the end.
func (a *answer) set(name string, value any) {
	a.fields = slices.Clone(a.fields)
	i := slices.IndexFunc(a.fields, func(f field) bool { return f.name == name })
	if i < 0 {
		a.fields = append(a.fields, field{name, value})
		return
	}
	a.fields[i].value = value
}

// without leaves fields out.
func (a *answer) without(names ...string) {
	a.fields = slices.DeleteFunc(slices.Clone(a.fields), func(f field) bool { return slices.Contains(names, f.name) })
}

// quoted puts the numbers among the fields into quotes.
func (a *answer) quoted() {
	a.fields = slices.Clone(a.fields)
	for i, f := range a.fields {
		if raw := encode(f.value); bytes.ContainsAny(raw[:1], "-0123456789") {
			a.fields[i].value = string(raw)
		}
	}
}

// MarshalJSON implements [json.Marshaler].
func (a answer) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range a.fields {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(encode(f.name))
		b.WriteByte(':')
		b.Write(encode(f.value))
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

var _ json.Marshaler = answer{}
