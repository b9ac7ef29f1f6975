// interop.v1.PlayService by grpc-go, with reflection.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // registers itself
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	v1 "quill.example/interop/gen/interop/v1"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	v1.RegisterPlayServiceServer(server, &play{})
	reflection.Register(server)
	if err := json.NewEncoder(os.Stdout).Encode(map[string]string{"grpc_address": listener.Addr().String()}); err != nil {
		log.Fatal(err)
	}
	log.Fatal(server.Serve(listener))
}

type play struct {
	v1.UnimplementedPlayServiceServer
	streams atomic.Int32
}

// Echo answers once.
func (p *play) Echo(ctx context.Context, request *v1.PlayRequest) (*v1.PlayResponse, error) {
	header, trailer := answers(ctx)
	if err := errors.Join(grpc.SetHeader(ctx, header), grpc.SetTrailer(ctx, trailer)); err != nil {
		return nil, err
	}
	if err := wait(ctx, request.DelayMs); err != nil {
		return nil, err
	}
	if request.Fail {
		return nil, refusal(request.Text)
	}
	return &v1.PlayResponse{Text: request.Text, Index: uint32(p.streams.Load())}, nil
}

// Repeat answers with a stream.
func (p *play) Repeat(request *v1.PlayRequest, stream grpc.ServerStreamingServer[v1.PlayResponse]) error {
	p.streams.Add(1)
	defer p.streams.Add(-1)
	if err := answer(stream); err != nil {
		return err
	}
	for index := range request.Count {
		if err := wait(stream.Context(), request.DelayMs); err != nil {
			return err
		}
		if err := stream.Send(&v1.PlayResponse{Text: request.Text, Index: index}); err != nil {
			return err
		}
	}
	if request.Fail {
		return refusal(request.Text)
	}
	return nil
}

// Collect takes a stream.
func (p *play) Collect(stream grpc.ClientStreamingServer[v1.PlayRequest, v1.PlayResponse]) error {
	if err := answer(stream); err != nil {
		return err
	}
	var texts []string
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&v1.PlayResponse{Text: strings.Join(texts, "+"), Index: uint32(len(texts))})
		}
		if err != nil {
			return err
		}
		texts = append(texts, request.Text)
	}
}

// Converse takes turns.
func (p *play) Converse(stream grpc.BidiStreamingServer[v1.PlayRequest, v1.PlayResponse]) error {
	if err := answer(stream); err != nil {
		return err
	}
	for index := uint32(0); ; index++ {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&v1.PlayResponse{Text: request.Text, Index: index}); err != nil {
			return err
		}
	}
}

// answer sets the headers and trailers of a stream.
func answer(stream grpc.ServerStream) error {
	header, trailer := answers(stream.Context())
	stream.SetTrailer(trailer)
	return stream.SetHeader(header)
}

// answers are the headers and trailers that belong to the request's metadata.
func answers(ctx context.Context) (header, trailer metadata.MD) {
	request, _ := metadata.FromIncomingContext(ctx)
	header, trailer = metadata.MD{}, metadata.MD{}
	for _, suffix := range []string{"", "-bin"} {
		if values := request.Get("x-interop" + suffix); len(values) > 0 {
			header.Set("x-header"+suffix, values...)
			trailer.Set("x-trailer"+suffix, values...)
		}
	}
	return header, trailer
}

func wait(ctx context.Context, delayMs uint32) error {
	select {
	case <-time.After(time.Duration(delayMs) * time.Millisecond):
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

func refusal(message string) error {
	refused := status.New(codes.FailedPrecondition, message)
	detailed, err := refused.WithDetails(&errdetails.ErrorInfo{Reason: "PLAYED", Domain: "interop"})
	if err != nil {
		return err
	}
	return detailed.Err()
}
