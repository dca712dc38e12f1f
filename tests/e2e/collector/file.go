//go:build file

package main

import (
	"github.com/open-telemetry/opentelemetry-collector-contrib/exporter/fileexporter"
	"github.com/open-telemetry/opentelemetry-collector-contrib/extension/storage/filestorage"
)

func init() {
	exporters = append(exporters, fileexporter.NewFactory())
	extensions = append(extensions, filestorage.NewFactory())
}
