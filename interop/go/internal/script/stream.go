package script

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "quill.example/interop/gen/inference/v1"
)

// reading is what has arrived of one run, checked as it comes.
type reading struct {
	started  *v1.Started
	next     uint32 // the entry that has to come next
	tokens   int
	text     strings.Builder
	finish   *v1.Finish
	complete bool
}

// take takes one message in.
func (r *reading) take(message *v1.StreamGenerateResponse) error {
	if message.GetProgress() != nil {
		return nil
	}
	if r.complete {
		return errors.New("a message after Completed")
	}
	if message.Position != r.next {
		return fmt.Errorf("position %d, not %d", message.Position, r.next)
	}
	if r.started == nil && message.GetStarted() == nil {
		return fmt.Errorf("the first message is %T", message.Event)
	}
	span := uint32(1)
	switch event := message.Event.(type) {
	case *v1.StreamGenerateResponse_Started:
		r.started = event.Started
	case *v1.StreamGenerateResponse_Delta:
		if r.finish != nil {
			return errors.New("tokens after SequenceDone")
		}
		span = max(span, uint32(len(event.Delta.GetTokens().GetTokens())))
		r.tokens += len(event.Delta.GetTokens().GetTokens())
		r.text.WriteString(event.Delta.Text)
	case *v1.StreamGenerateResponse_SequenceDone:
		r.finish = event.SequenceDone.Finish
	case *v1.StreamGenerateResponse_Completed:
		if event.Completed.Entries != message.Position+1 {
			return fmt.Errorf("entries %d at position %d", event.Completed.Entries, message.Position)
		}
		r.complete = true
	}
	r.next += span
	return nil
}

// until reads until so many tokens have come, or to the end; the error says how it ended.
func (r *reading) until(stream Stream, tokens int) error {
	for r.tokens < tokens {
		message, err := stream.Receive()
		if err != nil {
			return err
		}
		if err := r.take(message); err != nil {
			return err
		}
	}
	return nil
}

// whole checks a run that has ended well.
func (r *reading) whole(tokens int, text string) error {
	return first(
		check(r.started.GetEpoch() != "", "no epoch"),
		check(r.tokens == tokens, "%d tokens, not %d", r.tokens, tokens),
		check(r.finish.GetReason() == v1.FinishReason_FINISH_REASON_LENGTH, "finish %v", r.finish),
		check(r.complete, "no Completed"),
		check(r.text.String() == text, "the text %q, not %q", r.text.String(), text),
	)
}

const toTheEnd = 1 << 30

func (s *Script) streamGenerate(ctx context.Context) error {
	text, err := s.text(ctx, 24)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	request := usual(24)
	stream, err := s.client.StreamGenerate(ctx, request)
	if err != nil {
		return err
	}
	var got reading
	if err := got.until(stream, toTheEnd); !errors.Is(err, io.EOF) {
		return err
	}
	return first(
		got.whole(24, text),
		check(got.started.GetRequestId() == request.RequestId, "request id %q", got.started.GetRequestId()),
	)
}

// open starts a stream and reads its first tokens.
func (s *Script) open(ctx context.Context, request *v1.GenerateRequest, tokens int) (Stream, *reading, error) {
	stream, err := s.client.StreamGenerate(ctx, request)
	if err != nil {
		return nil, nil, err
	}
	got := &reading{}
	return stream, got, got.until(stream, tokens)
}

func (s *Script) streamCancel(ctx context.Context) error {
	leaving, leave := context.WithTimeout(ctx, callTimeout)
	defer leave()
	left := usual(1000)
	if _, _, err := s.open(leaving, left, 5); err != nil {
		return err
	}
	leave()
	time.Sleep(noticeTime)
	if err := s.cancelled(ctx, left.RequestId, false); err != nil {
		return fmt.Errorf("after the client left: %w", err)
	}

	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	stopped := usual(1000)
	stream, got, err := s.open(ctx, stopped, 5)
	if err != nil {
		return err
	}
	if err := s.cancelled(ctx, stopped.RequestId, true); err != nil {
		return err
	}
	return first(
		s.code(got.until(stream, toTheEnd), codes.Canceled),
		check(!got.complete, "Completed, though it was cancelled"),
	)
}

func (s *Script) deadline(ctx context.Context) error {
	began := time.Now()
	late, cancel := context.WithTimeout(ctx, 400*time.Millisecond)
	defer cancel()
	request := usual(1000)
	stream, got, err := s.open(late, request, 1)
	if err != nil {
		return err
	}
	if err := s.code(got.until(stream, toTheEnd), codes.DeadlineExceeded); err != nil {
		return err
	}
	if took := time.Since(began); took > 3*time.Second {
		return fmt.Errorf("it took %v", took)
	}
	time.Sleep(noticeTime)
	return s.cancelled(ctx, request.RequestId, false)
}

func (s *Script) errorDetails(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var streams []Stream
	var readings []*reading
	var requests []*v1.GenerateRequest
	for range 3 {
		request := usual(1000)
		stream, got, err := s.open(ctx, request, 1)
		if err != nil {
			return err
		}
		streams, readings, requests = append(streams, stream), append(readings, got), append(requests, request)
	}
	_, _, refused := s.open(ctx, usual(1000), 1)
	if err := s.refusal(refused); err != nil {
		return err
	}
	for at, stream := range streams {
		if err := s.cancelled(ctx, requests[at].RequestId, true); err != nil {
			return err
		}
		if err := s.code(readings[at].until(stream, toTheEnd), codes.Canceled); err != nil {
			return err
		}
	}
	return nil
}

// refusal checks how the fourth stream was refused.
func (s *Script) refusal(err error) error {
	if err := s.code(err, codes.ResourceExhausted); err != nil {
		return err
	}
	status := s.client.Status(err)
	if len(status.Details) != 1 {
		return fmt.Errorf("%d details, not 1", len(status.Details))
	}
	delay, err := retryDelay(status.Details[0])
	again := status.Metadata["retry-after"]
	return first(
		err,
		check(delay.GetSeconds() == 1 && delay.GetNanos() == 0, "retry delay %v, not 1 s", delay),
		check(strings.Contains(status.Message, "live_streams"), "message %q", status.Message),
		check(len(again) > 0 && again[0] == "1", "retry-after %q in %v", again, status.Metadata),
	)
}

func retryDelay(detail *anypb.Any) (*durationpb.Duration, error) {
	var info errdetails.RetryInfo
	err := detail.UnmarshalTo(&info)
	return info.RetryDelay, err
}

func (s *Script) resume(ctx context.Context) error {
	text, err := s.text(ctx, 200)
	if err != nil {
		return err
	}
	request := usual(200)
	request.StreamOptions = &v1.StreamOptions{ResumeTtlMs: 20000}
	var got reading
	cuts := 0
	for !got.complete {
		if cuts > 50 {
			return fmt.Errorf("not complete after %d cuts, at position %d", cuts, got.next)
		}
		if got.started != nil {
			request.StreamOptions.Resume = &v1.Resume{Epoch: got.started.Epoch, NextPosition: got.next}
		}
		err := s.read(ctx, request, &got)
		if err == nil || errors.Is(err, io.EOF) {
			break
		}
		cuts++
	}
	return first(check(cuts > 0, "the connection was never cut"), got.whole(200, text))
}

// read reads one call of a run through the proxy that cuts.
func (s *Script) read(ctx context.Context, request *v1.GenerateRequest, got *reading) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	stream, err := s.cut.StreamGenerate(ctx, request)
	if err != nil {
		return err
	}
	return got.until(stream, toTheEnd)
}
