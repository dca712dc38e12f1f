// An agent that traces itself by plain HTTP: go run .
//
// To trace an agent of your own, copy spans.go.
package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"syscall"
)

type object = map[string]any

func search(ctx context.Context, question string) (status string, err error) {
	err = traced(ctx, "search", object{"query": question}, func(_ context.Context, span *Span) error {
		status = "delivered"
		span.Output = object{"parcels": []object{{"number": 7, "status": status}}}
		return nil
	})
	return status, err
}

// A tool that fails: its span ends all the same, with the error.
func notify(ctx context.Context, number int) error {
	return traced(ctx, "notify", object{"parcel": number}, func(context.Context, *Span) error {
		return errors.New("the mail server gives no answer")
	})
}

func answer(ctx context.Context, question string) (said string, err error) {
	err = traced(ctx, "turn", object{"question": question}, func(ctx context.Context, turn *Span) error {
		status, err := search(ctx, question)
		if err != nil {
			return err
		}
		_ = notify(ctx, 7) // the turn goes on without it
		prompt := []object{{"role": "user", "content": question + " Its status is: " + status + "."}}
		err = traced(ctx, "model", object{"messages": prompt}, func(_ context.Context, model *Span) error {
			said = "It was delivered."
			model.Output = object{"role": "assistant", "content": said}
			return nil
		})
		turn.Output = object{"answer": said}
		return err
	})
	return said, err
}

func main() {
	// SIGTERM cancels the context: an agent that works with it ends its spans, then finish sends them.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	defer finish()
	said, err := answer(ctx, "Where is my parcel?")
	if err != nil {
		fmt.Println("no answer:", err)
		return
	}
	fmt.Println(said)
}
