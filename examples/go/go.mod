module traced-agent

go 1.21
