package script

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc/codes"

	v1 "quill.example/interop/gen/inference/v1"
)

const (
	callTimeout = 10 * time.Second
	// How long the server may take to notice that a caller has gone.
	noticeTime = 500 * time.Millisecond
)

// Script runs the cases: one client to the server, one through the proxy that cuts.
type Script struct {
	client, cut Client
	protocol    string
}

type namedCase struct {
	name string
	run  func(context.Context) error
}

// duplexCases need HTTP/2, and not gRPC-Web.
func (s *Script) duplexCases() []namedCase {
	return []namedCase{{"session", s.session}, {"stream_infer", s.streamInfer}}
}

// Run runs all cases, and prints a line for each.
func Run(client, cut Client, protocol string, fullDuplex bool) {
	script := Script{client, cut, protocol}
	cases := []namedCase{
		{"generate", script.generate},
		{"stream_generate", script.streamGenerate},
		{"stream_cancel", script.streamCancel},
		{"embed", script.embed},
		{"infer", script.infer},
		{"error_details", script.errorDetails},
		{"deadline", script.deadline},
		{"metadata", script.metadata},
		{"compression", script.compression},
		{"resume", script.resume},
	}
	if fullDuplex {
		cases = append(cases, script.duplexCases()...)
	}
	lines := json.NewEncoder(os.Stdout)
	for _, one := range cases {
		ctx, cancel := context.WithTimeout(context.Background(), 2*callTimeout)
		err := guarded(ctx, one.run)
		cancel()
		detail := ""
		if err != nil {
			detail = err.Error()
		}
		if lines.Encode(map[string]any{"case": one.name, "ok": err == nil, "detail": detail}) != nil {
			os.Exit(1)
		}
	}
}

func guarded(ctx context.Context, run func(context.Context) error) (err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("panic: %v", panicked)
		}
	}()
	return run(ctx)
}

// usual is the usual request of the convention.
func usual(tokens uint32) *v1.GenerateRequest {
	prompt, temperature := "Alice was beginning", float32(0)
	return &v1.GenerateRequest{
		RequestId:   "go-" + rand.Text(),
		Prompt:      &prompt,
		MaxTokens:   &tokens,
		Temperature: &temperature,
		IgnoreEos:   true,
	}
}

// check returns an error with the message unless it holds.
func check(holds bool, message string, values ...any) error {
	if holds {
		return nil
	}
	return fmt.Errorf(message, values...)
}

// first returns the first error.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// within calls with the deadline of ordinary calls.
func within[Q, R any](ctx context.Context, method Unary[Q, R], call *Call, request *Q) (*R, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return method(ctx, call, request)
}

// text is what a Generate of the same request answers.
func (s *Script) text(ctx context.Context, tokens uint32) (string, error) {
	reply, err := within(ctx, s.client.Generate, nil, usual(tokens))
	return reply.GetText(), err
}

// cancelled asks the server to end a run, and checks whether it had one.
func (s *Script) cancelled(ctx context.Context, requestID string, found bool) error {
	reply, err := within(ctx, s.client.CancelGenerate, nil, &v1.CancelGenerateRequest{RequestId: requestID})
	if err != nil {
		return err
	}
	return check(reply.Found == found, "CancelGenerate says found=%v, not %v", reply.Found, found)
}

// code checks how a call ended.
func (s *Script) code(err error, want codes.Code) error {
	if err == nil {
		return fmt.Errorf("OK, not %v", want)
	}
	status := s.client.Status(err)
	return check(status.Code == want, "%v (%s), not %v", status.Code, status.Message, want)
}
