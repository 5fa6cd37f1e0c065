package main

func writeFields(w *writer, schemas []*Schema) {}
func writeView(w *writer, s *Schema)           {}
func writeDocs(w *writer, schemas []*Schema)   {}
