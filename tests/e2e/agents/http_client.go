// Posts files to a URL with net/http. Arguments: the URL and the files.
//
// Every second body has no known length, so it is sent chunked; every fourth request waits for
// `100 Continue`. Prints the statuses, one a line.
package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"
)

func main() {
	// Without this limit, net/http would send the body whether or not the server continues.
	client := http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Hour}}
	for number, file := range os.Args[2:] {
		content, err := os.ReadFile(file)
		if err != nil {
			log.Fatal(err)
		}
		var body io.Reader = bytes.NewReader(content)
		if number%2 == 1 {
			body = io.MultiReader(body)
		}
		request, err := http.NewRequest(http.MethodPost, os.Args[1], body)
		if err != nil {
			log.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json")
		if number%4 == 3 {
			request.Header.Set("Expect", "100-continue")
		}
		reply, err := client.Do(request)
		if err != nil {
			log.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, reply.Body); err != nil {
			log.Fatal(err)
		}
		reply.Body.Close()
		fmt.Println(reply.StatusCode)
	}
}
