package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

// giveUp is how long one request is tried, and how long finish waits for all that is left.
const giveUp = 20 * time.Second

// Span is one span. Set Output while it is open.
type Span struct {
	ID        string    `json:"id"`
	TraceID   string    `json:"trace_id"`
	ParentID  string    `json:"parent_id,omitempty"`
	Name      string    `json:"name"`
	StartTime time.Time `json:"start_time"`
	EndTime   time.Time `json:"end_time"`
	Input     any       `json:"input,omitempty"`
	Output    any       `json:"output,omitempty"`
	Data      any       `json:"data,omitempty"`
}

var (
	url = env("TRACE_SIDECAR_URL", "http://127.0.0.1:8318") + "/v1/spans"
	// Never through a proxy, whatever HTTP_PROXY says: the sidecar is on this machine.
	client    = http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{}}
	waiting   = make(chan json.RawMessage, 1000)
	delivered = make(chan struct{})
)

func init() { go deliver() }

func env(name, otherwise string) string {
	if value, ok := os.LookupEnv(name); ok {
		return value
	}
	return otherwise
}

func newID() string {
	id := make([]byte, 16)
	rand.Read(id)
	return fmt.Sprintf("%x", id)
}

type parentKey struct{}

// traced runs work in a span: its START, and however it ends, its END.
func traced(ctx context.Context, name string, input any, work func(context.Context, *Span) error) (err error) {
	span := &Span{ID: newID(), TraceID: newID(), Name: name, StartTime: time.Now().UTC(), Input: input}
	if parent, ok := ctx.Value(parentKey{}).(*Span); ok {
		span.TraceID, span.ParentID = parent.TraceID, parent.ID
	}
	span.EndTime = span.StartTime // ignored in a START
	send("start", span)
	defer func() {
		problem := recover()
		if problem != nil {
			err = fmt.Errorf("panic: %v", problem)
		}
		if err != nil {
			span.Data = map[string]any{"__error__": map[string]string{
				"type": fmt.Sprintf("%T", err), "message": err.Error(), "category": "unknown"}}
		}
		span.EndTime = span.StartTime.Add(time.Since(span.StartTime)) // by the monotonic clock
		send("end", span)
		if problem != nil {
			panic(problem)
		}
	}()
	return work(context.WithValue(ctx, parentKey{}, span), span)
}

// send never waits: what does not fit in the buffer, or is no JSON, is dropped.
func send(eventType string, span *Span) {
	event, err := json.Marshal(map[string]any{"event_type": eventType, "span": span})
	if err != nil {
		fmt.Fprintln(os.Stderr, "event dropped:", err)
		return
	}
	select {
	case waiting <- event:
	default:
	}
}

// finish waits until everything so far is delivered, but not for long.
func finish() {
	late := time.After(giveUp)
	select {
	case waiting <- nil:
	case <-late:
	}
	select {
	case <-delivered:
	case <-late:
	}
}

// deliver posts what is waiting, at most 100 events a request; a nil is the end.
func deliver() {
	for {
		var events []json.RawMessage
		event := <-waiting
		for ; event != nil; event = <-waiting {
			if events = append(events, event); len(events) == 100 || len(waiting) == 0 {
				break
			}
		}
		if len(events) > 0 {
			post(events)
		}
		if event == nil {
			close(delivered)
			return
		}
	}
}

// post sends events. For a while, it tries again what may pass: no sidecar yet, 408, 429, 503.
func post(events []json.RawMessage) {
	body, _ := json.Marshal(events)
	deadline := time.Now().Add(giveUp)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		wait := pause
		// An error: nothing listens yet, or the connection broke. Sending twice is harmless.
		if reply, err := client.Post(url, "application/json", bytes.NewReader(body)); err == nil {
			text, _ := io.ReadAll(reply.Body)
			reply.Body.Close()
			switch reply.StatusCode {
			case http.StatusAccepted:
				var answer struct{ Rejected []struct{ Error string } }
				json.Unmarshal(text, &answer)
				for _, rejected := range answer.Rejected {
					fmt.Fprintln(os.Stderr, "event rejected:", rejected.Error)
				}
				return
			case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusServiceUnavailable:
				seconds, _ := strconv.Atoi(reply.Header.Get("Retry-After"))
				wait = max(pause, time.Duration(seconds)*time.Second)
			default:
				fmt.Fprintf(os.Stderr, "events refused: %s\n", text)
				return
			}
		}
		if time.Now().Add(wait).After(deadline) {
			fmt.Fprintf(os.Stderr, "%d events dropped: no sidecar at %s\n", len(events), url)
			return
		}
		time.Sleep(wait)
	}
}
