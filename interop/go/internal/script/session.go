package script

import (
	"context"
	"errors"
	"fmt"
	"io"

	v1 "quill.example/interop/gen/inference/v1"
)

const (
	sessionRuns   = 8
	sessionTokens = 40
	sessionWindow = 16
)

// column is one run of a session, read from columns and events.
type column struct {
	next     uint32
	tokens   int
	data     []byte
	done     bool
	complete bool
}

func (s *Script) session(ctx context.Context) error {
	text, err := s.text(ctx, sessionTokens)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	session, err := s.client.Session(ctx)
	if err != nil {
		return err
	}
	starts, runs := &v1.SessionRequest{}, map[uint32]*column{}
	for run := uint32(1); run <= sessionRuns; run++ {
		start := &v1.SessionStart{Run: run, Request: usual(sessionTokens), Window: sessionWindow}
		starts.Starts = append(starts.Starts, start)
		runs[run] = &column{}
	}
	if err := session.Send(starts); err != nil {
		return err
	}
	if err := takeAll(session, runs); err != nil {
		return err
	}
	for run, column := range runs {
		if err := column.whole(text); err != nil {
			return fmt.Errorf("run %d: %w", run, err)
		}
	}
	return nil
}

// takeAll reads and acknowledges frames until every run is complete, and then the end of the session.
func takeAll(session Session, runs map[uint32]*column) error {
	live := len(runs)
	for {
		frame, err := session.Receive()
		if errors.Is(err, io.EOF) && live == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("with %d runs open: %w", live, err)
		}
		touched, err := takeFrame(frame, runs)
		if err != nil {
			return err
		}
		acks := &v1.SessionRequest{}
		for run := range touched {
			if runs[run].complete {
				live--
				continue
			}
			acks.Acks = append(acks.Acks, &v1.SessionAck{Run: run, Position: runs[run].next})
		}
		if live == 0 {
			err = session.CloseRequest()
		} else {
			err = session.Send(acks)
		}
		if err != nil {
			return err
		}
	}
}

// takeFrame takes one frame in, in the order of the contract: starts, tokens, ends.
func takeFrame(frame *v1.SessionResponse, runs map[uint32]*column) (map[uint32]bool, error) {
	touched := map[uint32]bool{}
	for _, starts := range []bool{true, false} {
		for _, event := range frame.Events {
			if starts != (event.GetResponse().GetStarted() != nil) {
				continue
			}
			touched[event.Run] = true
			if failed := event.GetError(); failed != nil {
				return nil, fmt.Errorf("run %d: code %d, %s", event.Run, failed.Code, failed.Message)
			}
			if err := runs[event.Run].event(event.GetResponse()); err != nil {
				return nil, fmt.Errorf("run %d: %w", event.Run, err)
			}
		}
		if !starts {
			break
		}
		if err := takeColumns(frame.GetTokens(), runs, touched); err != nil {
			return nil, err
		}
	}
	return touched, nil
}

func takeColumns(columns *v1.TokenColumns, runs map[uint32]*column, touched map[uint32]bool) error {
	at, begin := 0, uint32(0)
	for segment, run := range columns.GetRuns() {
		column, count := runs[run], int(columns.Counts[segment])
		if columns.Positions[segment] != column.next {
			return fmt.Errorf("run %d: position %d, not %d", run, columns.Positions[segment], column.next)
		}
		for _, length := range columns.DataLengths[at : at+count] {
			column.data = append(column.data, columns.Data[begin:begin+length]...)
			begin += length
		}
		at += count
		column.tokens += count
		column.next += uint32(count)
		touched[run] = true
	}
	return check(at == len(columns.GetIds()) && begin == uint32(len(columns.GetData())),
		"segments of %d tokens and %d bytes, columns of %d and %d",
		at, begin, len(columns.GetIds()), len(columns.GetData()))
}

// event takes what is no column.
func (c *column) event(message *v1.StreamGenerateResponse) error {
	if message.GetProgress() != nil {
		return nil
	}
	if message.Position != c.next {
		return fmt.Errorf("position %d, not %d", message.Position, c.next)
	}
	span := 1
	if tokens := message.GetDelta().GetTokens().GetTokens(); len(tokens) > 0 {
		for _, token := range tokens {
			c.data = append(c.data, token.Data...)
		}
		c.tokens += len(tokens)
		span = len(tokens)
	}
	c.done = c.done || message.GetSequenceDone() != nil
	c.complete = message.GetCompleted() != nil
	c.next += uint32(span)
	return nil
}

func (c *column) whole(text string) error {
	return first(
		check(c.tokens == sessionTokens, "%d tokens, not %d", c.tokens, sessionTokens),
		check(c.done && c.complete, "SequenceDone %v, Completed %v", c.done, c.complete),
		check(string(c.data) == text, "the text %q, not %q", c.data, text),
	)
}
